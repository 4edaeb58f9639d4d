// Exact selection of the nearest tokens by one block: a histogram, a threshold, one compaction.
//
// Selections can be merged. Each chunk of a row selects with the budget, sinks and recent of the
// row, and the same selection from the results of the chunks gives the result of the row. This is
// exact, because a token that the row selects is also selected in its chunk: there it competes with
// fewer tokens, and a sink or recent token of the row is also one of its chunk.

#pragma once
#include "score.cuh"

constexpr int BIN_BITS = 11, BINS = 1 << BIN_BITS;
constexpr int MAX_WARPS = 32;

struct alignas(16) SelectionScratch {
  unsigned histogram[BINS];  // first, so that four bins are aligned to 16 bytes
  unsigned counts[3][MAX_WARPS];
  unsigned bin, before, inside;  // the bin of the threshold; tokens before it and inside it
};

__device__ __forceinline__ unsigned sum_of_warp(unsigned x) {
#pragma unroll
  for (int stride = LANES / 2; stride > 0; stride /= 2) x += __shfl_xor_sync(ALL_LANES, x, stride);
  return x;
}

// The sums of x over the lanes of the warp up to this one.
__device__ __forceinline__ unsigned sum_up_to(unsigned x) {
#pragma unroll
  for (int stride = 1; stride < LANES; stride *= 2) {
    const unsigned other = __shfl_up_sync(ALL_LANES, x, stride);
    if (lane_index() >= stride) x += other;
  }
  return x;
}

// Finds the bin with the token number `rank`, counted from 1, from the histogram. The number of
// threads of the block divides BINS / 4.
__device__ __forceinline__ void find_bin(SelectionScratch& s, unsigned rank) {
  const int lane = threadIdx.x % LANES, warp = threadIdx.x / LANES;
  const int share = BINS / blockDim.x;
  const unsigned* bins = s.histogram + threadIdx.x * share;
  unsigned own = 0;
  for (int i = 0; i < share; i += 4) {  // one load, because single loads meet the same banks
    const uint4 four = *reinterpret_cast<const uint4*>(bins + i);
    own += four.x + four.y + four.z + four.w;
  }
  const unsigned up_to = sum_up_to(own);
  if (lane == LANES - 1) s.counts[0][warp] = up_to;
  __syncthreads();
  unsigned before = up_to - own;
  for (int w = 0; w < warp; ++w) before += s.counts[0][w];
  if (before < rank && rank <= before + own) {  // true in exactly one thread
    int i = 0;
    while (before + bins[i] < rank) before += bins[i++];
    s.bin = threadIdx.x * share + i;
    s.before = before;
    s.inside = bins[i];
  }
  __syncthreads();
}

// The distance of an invisible token, for distances of 16 bits (INVISIBLE) and of 32 bits.
template <typename T>
constexpr unsigned NOT_THERE = static_cast<T>(~T{0});
static_assert(NOT_THERE<unsigned short> == INVISIBLE);

// The consecutive tokens of a row that one warp takes.
template <typename T>
struct Run {
  const T* distances;
  int begin, end;
  unsigned seen_before;     // visible tokens of the row before the run
  unsigned sinks, recents;  // visible tokens with a rank < sinks or >= recents are forced
  bool forces;

  // The warp visits its tokens in order, 32 at a time, with visit(token, distance, forced). Lanes
  // after the end visit an invisible token. Returns the number of visible tokens of the row before
  // the end of the run, if tokens may be forced.
  template <typename Visit>
  __device__ unsigned walk(Visit visit) const {
    const int lane = threadIdx.x % LANES;
    unsigned rank = seen_before;  // visible tokens of the row before these 32
    for (int start = begin; start < end; start += LANES) {
      const int i = start + lane;
      const unsigned d = i < end ? distances[i] : NOT_THERE<T>;
      bool forced = false;
      if (forces) {
        const unsigned here = __ballot_sync(ALL_LANES, d != NOT_THERE<T>);
        const unsigned own = rank + __popc(here & ((1u << lane) - 1));
        forced = d != NOT_THERE<T> && (own < sinks || own >= recents);
        rank += __popc(here);
      }
      visit(i, d, forced);
    }
    return rank;
  }

  // Calls visit(part) for parts of `size` tokens, a multiple of 32, in order. visit returns what
  // walk of the part returns; that is not needed where there is one part.
  template <typename Visit>
  __device__ void in_parts(int size, Visit visit) const {
    Run part = *this;
    for (int start = begin; start < end; start += size) {
      part.begin = start;
      part.end = min(start + size, end);
      part.seen_before = visit(part);
    }
  }
};

// Reads the distances as they are; see select_nearest.
template <typename T>
struct AsStored {
  const T* distances;
  __device__ unsigned operator()(int i) const { return distances[i]; }
};

// Selects up to K of n tokens by distances[0 .. n): the first `sinks` and the last `recent` visible
// tokens, and the nearest of the other visible ones. Among equal distances the last token wins.
// Calls emit(position, token, distance) once for each selected token, with positions 0, 1, ... in
// the order of the tokens. Returns their number. The whole block must call it, with sinks +
// recent <= K, and there must be a barrier between the writes to `distances` and the call. It ends
// with a barrier.
//
// emit may overwrite the distance of its token, which is not read afterwards.
//
// read(i) is called once for each token, before all else. It returns the distance of the token, and
// may write it to distances[i] first. No other thread reads distances[i] before the next barrier.
template <typename T, typename Read, typename Emit>
__device__ int select_nearest(
  const T* distances, int n, int K, int sinks, int recent, SelectionScratch& s, Read read, Emit emit
) {
  // Each warp has a run of consecutive tokens. Their number is a multiple of 32, except for the
  // last.
  const int lane = threadIdx.x % LANES, warp = threadIdx.x / LANES, warps = blockDim.x / LANES;
  const int run = (n + blockDim.x - 1) / blockDim.x * LANES;
  const int begin = min(warp * run, n), end = min(begin + run, n);

  // Count the visible tokens, before this warp and in total; find their smallest and largest
  // distance.
  unsigned seen = 0, least = NOT_THERE<T>, most = 0;
  for (int i = begin + lane; i < end; i += LANES) {
    const unsigned d = read(i);
    if (d != NOT_THERE<T>) {
      ++seen;
      least = min(least, d);
      most = max(most, d);
    }
  }
  seen = sum_of_warp(seen);
#pragma unroll
  for (int stride = LANES / 2; stride > 0; stride /= 2) {
    least = min(least, __shfl_xor_sync(ALL_LANES, least, stride));
    most = max(most, __shfl_xor_sync(ALL_LANES, most, stride));
  }
  if (lane == 0) {
    s.counts[0][warp] = seen;
    s.counts[1][warp] = least;
    s.counts[2][warp] = most;
  }
  __syncthreads();
  unsigned visible = 0, seen_before = 0;
  for (int w = 0; w < warps; ++w) {
    if (w < warp) seen_before += s.counts[0][w];
    visible += s.counts[0][w];
    least = min(least, s.counts[1][w]);
    most = max(most, s.counts[2][w]);
  }
  __syncthreads();
  const Run<T> mine{
    distances, begin, end, seen_before, static_cast<unsigned>(sinks),
    visible - min(visible, static_cast<unsigned>(recent)),
    // With K visible tokens or fewer, all are taken and none must be forced.
    sinks + recent > 0 && visible > static_cast<unsigned>(K)
  };

  // Find the threshold. Smaller distances are taken; of the distances equal to it all are taken
  // except the first `skipped`. A round with 2048 bins fixes 11 bits, so two rounds find the value
  // of a distance of 16 bits, and three that of 32 bits. One round is enough where the distances
  // span less than 2048. That is always so for distances up to 7 * 3 * 64 and 3 * 512. No other
  // round is needed where all tokens of the bin are taken.
  unsigned threshold = NOT_THERE<T>, skipped = 0;
  if (visible > static_cast<unsigned>(K)) {
    const unsigned rank = K - sinks - recent;
    if (rank == 0) {
      threshold = 0;
      skipped = visible;
    } else {
      unsigned first = least, width = most - least + 1, wanted = rank;
      for (;;) {
        const int shift = max(32 - BIN_BITS - __clz(width - 1), 0);  // width <= BINS << shift
        for (int i = threadIdx.x; i < BINS; i += blockDim.x) s.histogram[i] = 0;
        __syncthreads();
        mine.walk([&](int, unsigned d, bool forced) {
          if (!forced && d - first < width) {  // never true for an invisible token
            atomicAdd(&s.histogram[(d - first) >> shift], 1u);
          }
        });
        __syncthreads();
        find_bin(s, wanted);
        first += s.bin << shift;
        wanted -= s.before;
        skipped = s.inside - wanted;
        width = min(1u << shift, most - first + 1);
        if (shift == 0 || skipped == 0) break;
      }
      threshold = skipped == 0 ? first + (width - 1) : first;
    }
  }

  // A lane gets the marks of 32 tokens: those below the threshold, and those equal to it. So the
  // warp marks 1024 tokens at a time. If the run is longer, they are marked again below.
  constexpr int MARKED = LANES * LANES;
  unsigned below_marks, equal_marks;
  const auto mark = [&](Run<T> part) {
    below_marks = equal_marks = 0;
    int owner = 0;
    return part.walk([&](int, unsigned d, bool forced) {
      const unsigned below_here = __ballot_sync(ALL_LANES, forced || d < threshold);
      const unsigned equal_here =
          __ballot_sync(ALL_LANES, !forced && d == threshold && d != NOT_THERE<T>);
      if (lane == owner) {
        below_marks = below_here;
        equal_marks = equal_here;
      }
      ++owner;
    });
  };

  // Count the marked tokens before each warp.
  unsigned below = 0, equal = 0;
  mine.in_parts(MARKED, [&](Run<T> part) {
    const unsigned seen_before_next = mark(part);
    below += __popc(below_marks);
    equal += __popc(equal_marks);
    return seen_before_next;
  });
  below = sum_of_warp(below);
  equal = sum_of_warp(equal);
  __syncthreads();  // all threads have read the counts of find_bin
  if (lane == 0) {
    s.counts[0][warp] = below;
    s.counts[1][warp] = equal;
  }
  __syncthreads();
  below = equal = 0;
  for (int w = 0; w < warp; ++w) {
    below += s.counts[0][w];
    equal += s.counts[1][w];
  }

  mine.in_parts(MARKED, [&](Run<T> part) {
    const unsigned seen_before_next = end - begin > MARKED ? mark(part) : 0;
    const unsigned below_up_to = sum_up_to(__popc(below_marks));
    const unsigned equal_up_to = sum_up_to(__popc(equal_marks));
    unsigned own_below = below + below_up_to - __popc(below_marks);
    unsigned own_equal = equal + equal_up_to - __popc(equal_marks);
    for (unsigned marks = below_marks | equal_marks; marks != 0; marks &= marks - 1) {
      const int bit = __ffs(marks) - 1, i = part.begin + LANES * lane + bit;
      const bool is_equal = equal_marks >> bit & 1;
      if (!is_equal || own_equal >= skipped) {
        emit(static_cast<int>(own_below + max(own_equal, skipped) - skipped), i, distances[i]);
      }
      own_below += !is_equal;
      own_equal += is_equal;
    }
    below += __shfl_sync(ALL_LANES, below_up_to, LANES - 1);
    equal += __shfl_sync(ALL_LANES, equal_up_to, LANES - 1);
    return seen_before_next;
  });
  __syncthreads();
  return min(visible, static_cast<unsigned>(K));
}

// Tokens per chunk, in whole tiles, so that `chunks` of them hold n tokens. The grid is made for a
// capacity and serves every length up to it.
//
// A short sequence takes few chunks of LEAST_TILES, and leaves the others empty. `room` is the
// number of tokens that a chunk may have.
constexpr int LEAST_TILES = 8;

__device__ __forceinline__ int chunk_size(int n, int chunks, int room) {
  const int even = ((n + TILE - 1) / TILE + chunks - 1) / chunks;
  return max(even, min(LEAST_TILES, room / TILE)) * TILE;
}

// The destination of a chunk's selection. If `slots` is 0, this is the result of the row, which has
// one chunk. Else it is `slots` places of the row's candidates, from which another kernel selects
// again. The distance of an unused place is NOT_THERE.
template <typename T>
struct Candidates {
  T* distances;  // (rows, chunks, slots)
  int* tokens;
  int* indices;  // (rows, K), -1 after the last token
  int chunks, slots;
};

// Marks the places after the first `taken` of a chunk's selection as unused.
template <typename T>
__device__ __forceinline__ void leave_unused(
  int taken, Int row, int chunk, int K, const Candidates<T>& out
) {
  const bool whole = out.slots == 0;
  const Int first = (row * out.chunks + chunk) * out.slots;
  for (int i = taken + threadIdx.x; i < (whole ? K : out.slots); i += blockDim.x) {
    if (whole) {
      out.indices[row * K + i] = -1;
    } else {
      out.distances[first + i] = NOT_THERE<T>;
    }
  }
}

// Selects from a chunk whose first token is `start`, and stores the result. `read` is that of
// select_nearest. If `marks`, the distance of each selected token becomes NOT_THERE. The whole block
// must call it.
template <typename T, typename Read>
__device__ __forceinline__ void select_from_chunk(
  T* distances, int n, int start, Int row, int chunk, int K, int sinks, int recent,
  SelectionScratch& s, const Candidates<T>& out, Read read, bool marks = false
) {
  const bool whole = out.slots == 0;
  const Int first = (row * out.chunks + chunk) * out.slots;
  int* tokens = whole ? out.indices + row * K : out.tokens + first;
  T* near = whole ? nullptr : out.distances + first;
  const int taken = select_nearest(
    distances, n, K, sinks, recent, s, read,
    [&](int at, int i, unsigned d) {
      tokens[at] = start + i;
      if (near) near[at] = d;
      if (marks) distances[i] = NOT_THERE<T>;
    }
  );
  leave_unused(taken, row, chunk, K, out);
}
