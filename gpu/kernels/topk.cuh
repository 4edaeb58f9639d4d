// Exact selection of the nearest tokens by one block: a histogram, a threshold, one compaction.
//
// It merges: what a row's chunks select, each with the row's own budget, sinks and recent, is a
// row again, from which the same selection gives the row's result. A token that the row selects is
// selected in its chunk: there it competes with fewer tokens, the row's first `sinks` visible ones
// are among the first of their chunks, and the last likewise.

#pragma once
#include "score.cuh"

constexpr int BIN_BITS = 11, BINS = 1 << BIN_BITS;
constexpr int MAX_WARPS = 32;

struct SelectionScratch {
  unsigned histogram[BINS];
  unsigned counts[3][MAX_WARPS];
  unsigned bin, before, inside;  // the bin of the threshold, and the counts before and inside it
};

__device__ __forceinline__ unsigned sum_of_warp(unsigned x) {
#pragma unroll
  for (int stride = LANES / 2; stride > 0; stride /= 2) x += __shfl_xor_sync(ALL_LANES, x, stride);
  return x;
}

// Finds the bin that holds the `rank`th token, counted from 1; every bin up to it has been counted.
// The block has as many threads as divide BINS.
__device__ __forceinline__ void find_bin(SelectionScratch& s, unsigned rank) {
  const int lane = threadIdx.x % LANES, warp = threadIdx.x / LANES;
  const int share = BINS / blockDim.x;
  const unsigned* bins = s.histogram + threadIdx.x * share;
  unsigned own = 0;
  for (int i = 0; i < share; ++i) own += bins[i];
  unsigned up_to = own;  // of the warp's lanes up to this one
#pragma unroll
  for (int stride = 1; stride < LANES; stride *= 2) {
    const unsigned other = __shfl_up_sync(ALL_LANES, up_to, stride);
    if (lane >= stride) up_to += other;
  }
  if (lane == LANES - 1) s.counts[0][warp] = up_to;
  __syncthreads();
  unsigned before = up_to - own;
  for (int w = 0; w < warp; ++w) before += s.counts[0][w];
  if (before < rank && rank <= before + own) {  // of one thread alone
    int i = 0;
    while (before + bins[i] < rank) before += bins[i++];
    s.bin = threadIdx.x * share + i;
    s.before = before;
    s.inside = bins[i];
  }
  __syncthreads();
}

// The distance of a token that is not there, in distances of 16 bits (INVISIBLE) or 32.
template <typename T>
constexpr unsigned NOT_THERE = static_cast<T>(~T{0});
static_assert(NOT_THERE<unsigned short> == INVISIBLE);

// A warp's run of consecutive tokens of a row.
template <typename T>
struct Run {
  const T* distances;
  int begin, end;
  unsigned seen_before;     // visible tokens of the row before the run
  unsigned sinks, recents;  // visible tokens of these ranks are forced: below sinks, from recents on
  bool forces;

  // The warp visits its tokens in order, 32 at a time: visit(token, distance, forced), a lane
  // behind the end being an invisible token.
  template <typename Visit>
  __device__ void walk(Visit visit) const {
    const int lane = threadIdx.x % LANES;
    unsigned rank = seen_before;  // of the first of the 32 among the visible ones
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
  }
};

// Selects up to K of the n tokens by distances[0 .. n), those NOT_THERE left out: the first `sinks`
// and the last `recent` visible ones and the nearest of the others, among equals the last.
// Calls emit(position, token, distance) once for each, with positions 0, 1, ... in the tokens'
// order, and returns how many there are. The whole block calls it, with sinks + recent <= K,
// after a barrier behind the writes to `distances`; it ends with a barrier.
template <typename T, typename Emit>
__device__ int select_nearest(
  const T* distances, int n, int K, int sinks, int recent, SelectionScratch& s, Emit emit
) {
  // Each warp has a run of consecutive tokens, a multiple of 32 but for the last.
  const int lane = threadIdx.x % LANES, warp = threadIdx.x / LANES, warps = blockDim.x / LANES;
  const int run = (n + blockDim.x - 1) / blockDim.x * LANES;
  const int begin = min(warp * run, n), end = min(begin + run, n);
  const unsigned below_lane = (1u << lane) - 1;

  // How many are visible, before this warp and in all, and their smallest and largest distance.
  unsigned seen = 0, least = NOT_THERE<T>, most = 0;
  for (int i = begin + lane; i < end; i += LANES) {
    const unsigned d = distances[i];
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
    // With fewer visible tokens than K all are taken and none needs force.
    sinks + recent > 0 && visible > static_cast<unsigned>(K)
  };

  // The threshold: smaller distances are taken, and of those equal to it all but the first
  // `skipped`. A round of 2048 bins settles 11 bits: of distances of 16 bits two rounds reach a
  // single value, of 32 bits three; the first one does where they span less than 2048, as up to
  // 7 * 3 * 64 and 3 * 512 always.
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
          if (d != NOT_THERE<T> && !forced && d - first < width) {
            atomicAdd(&s.histogram[(d - first) >> shift], 1u);
          }
        });
        __syncthreads();
        find_bin(s, wanted);
        first += s.bin << shift;
        wanted -= s.before;
        if (shift == 0) break;
        width = 1u << shift;
      }
      threshold = first;
      skipped = s.inside - wanted;
    }
  }

  // How many are taken below the threshold and how many stand at it, before each warp.
  unsigned below = 0, equal = 0;
  mine.walk([&](int, unsigned d, bool forced) {
    below += __popc(__ballot_sync(ALL_LANES, forced || d < threshold));
    equal += __popc(__ballot_sync(ALL_LANES, !forced && d == threshold && d != NOT_THERE<T>));
  });
  __syncthreads();  // find_bin's counts have been read
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

  mine.walk([&](int i, unsigned d, bool forced) {
    const bool is_below = forced || d < threshold;
    const bool is_equal = !forced && d == threshold && d != NOT_THERE<T>;
    const unsigned below_here = __ballot_sync(ALL_LANES, is_below);
    const unsigned equal_here = __ballot_sync(ALL_LANES, is_equal);
    const unsigned own_below = below + __popc(below_here & below_lane);
    const unsigned own_equal = equal + __popc(equal_here & below_lane);
    if (is_below || (is_equal && own_equal >= skipped)) {
      emit(static_cast<int>(own_below + max(own_equal, skipped) - skipped), i, d);
    }
    below += __popc(below_here);
    equal += __popc(equal_here);
  });
  __syncthreads();
  return min(visible, static_cast<unsigned>(K));
}

// Where a chunk's selection goes: into the row's result, if there is but one chunk; else into `slots`
// places of the row's candidates, unused ones NOT_THERE, from which merge_candidates selects again.
template <typename T>
struct Candidates {
  T* distances;  // (rows, chunks, slots)
  int* tokens;
  int* indices;  // (rows, K), -1 behind the last
  int chunks, slots;
};

// Selects from a chunk whose first token is `start`, and stores the result. The block calls it.
template <typename T>
__device__ __forceinline__ void select_from_chunk(
  const T* distances, int n, int start, Int row, int chunk, int K, int sinks, int recent,
  SelectionScratch& s, const Candidates<T>& out
) {
  const bool whole = out.chunks == 1;
  const Int first = (row * out.chunks + chunk) * out.slots;
  int* tokens = whole ? out.indices + row * K : out.tokens + first;
  T* kept = whole ? nullptr : out.distances + first;
  const int taken = select_nearest(
    distances, n, K, sinks, recent, s,
    [&](int at, int i, unsigned d) {
      tokens[at] = start + i;
      if (kept) kept[at] = d;
    }
  );
  for (int i = taken + threadIdx.x; i < (whole ? K : out.slots); i += blockDim.x) {
    if (whole) {
      tokens[i] = -1;
    } else {
      kept[i] = NOT_THERE<T>;
    }
  }
}
