// Exact selection of the nearest tokens by one block: a histogram, a threshold, one compaction.
//
// Selections can be merged. Each chunk of a row selects with the budget, sinks and recent of the
// row, and the same selection from the results of the chunks gives the result of the row. This is
// exact, because a token that the row selects is also selected in its chunk: there it competes with
// fewer tokens, and a sink or recent token of the row is also one of its chunk.

#pragma once
#include "score.cuh"

constexpr int BIN_BITS = 11, BINS = 1 << BIN_BITS;
constexpr int MAX_WARPS = 32, MAX_TEAMS = 8;
// From sm_100 on some variants take a few registers more, and have one block less per multiprocessor.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 1000
constexpr int SPARE = 1;
#else
constexpr int SPARE = 0;
#endif

constexpr int FEW = 64;  // tokens that are compared with each other

// The threads that select from one row: all of a block, or an equal part of its warps. Their number
// divides BINS / 4. All teams of a block meet the same barriers.
struct Team {
  int number, teams;    // this team, and how many there are: a power of two
  int thread, threads;  // this thread in its team, and how many there are

  __device__ int warp() const { return thread / LANES; }
  __device__ int warps() const { return threads / LANES; }
  __device__ int bins() const { return BINS / teams; }
};

__device__ __forceinline__ Team whole_block() {
  return {0, 1, static_cast<int>(threadIdx.x), static_cast<int>(blockDim.x)};
}

// One team for each of `rows` rows, and idle ones up to a power of two.
__device__ __forceinline__ Team team_of(int rows) {
  const int teams = rows > 4 ? 8 : rows > 2 ? 4 : rows;
  const int threads = blockDim.x / teams, thread = threadIdx.x;
  return {thread / threads, teams, thread % threads, threads};
}

struct alignas(16) SelectionScratch {
  unsigned histogram[BINS];  // of all teams; first, so that four bins are aligned to 16 bytes
  unsigned counts[3][MAX_WARPS];
  struct {
    unsigned bin, before, inside;  // the bin of the threshold; tokens before it and inside it
    unsigned few, threshold, skipped;
    int begin, end;  // visible tokens outside are forced
  } of[MAX_TEAMS];

  // The bins of a team. After the last round they hold its few tokens.
  __device__ unsigned* bins(Team team) { return histogram + team.number * team.bins(); }
};

// The sums of x over the lanes of the warp up to this one.
__device__ __forceinline__ unsigned sum_up_to(unsigned x) {
#pragma unroll
  for (int stride = 1; stride < LANES; stride *= 2) {
    const unsigned other = __shfl_up_sync(ALL_LANES, x, stride);
    if (lane_index() >= stride) x += other;
  }
  return x;
}

// Where `searching`, finds the bin with the token number `rank`, counted from 1, from the histogram
// of a team. The whole block must call it. It begins and ends with a barrier.
__device__ __forceinline__ void find_bin(
  Team team, SelectionScratch& s, bool searching, unsigned rank
) {
  const int lane = lane_index(), first_warp = team.number * team.warps();
  const int share = team.bins() / team.threads;
  const unsigned* bins = s.bins(team) + team.thread * share;
  unsigned own = 0;
  __syncthreads();
#pragma unroll 2
  for (int i = 0; i < share; i += 4) {  // one load, because single loads meet the same banks
    const uint4 four = *reinterpret_cast<const uint4*>(bins + i);
    own += four.x + four.y + four.z + four.w;
  }
  const unsigned up_to = sum_up_to(own);
  if (lane == LANES - 1) s.counts[0][first_warp + team.warp()] = up_to;
  __syncthreads();
  unsigned before = up_to - own;
#pragma unroll 1
  for (int w = 0; w < team.warp(); ++w) before += s.counts[0][first_warp + w];
  if (searching && before < rank && rank <= before + own) {  // true in exactly one thread
    int i = 0;
    while (before + bins[i] < rank) before += bins[i++];
    s.of[team.number].bin = team.thread * share + i;
    s.of[team.number].before = before;
    s.of[team.number].inside = bins[i];
  }
  __syncthreads();
}

// The distance of an invisible token, for distances of 16 bits (INVISIBLE) and of 32 bits.
template <typename T>
constexpr unsigned NOT_THERE = static_cast<T>(~T{0});
static_assert(NOT_THERE<unsigned short> == INVISIBLE);

// The visible tokens that a thread has met: their number, and their smallest and largest distance.
struct Spread {
  unsigned seen, least, most;

  static __device__ __forceinline__ Spread none() { return {0, ~0u, 0}; }

  __device__ __forceinline__ void add(unsigned d) {
    least = min(least, d);
    most = max(most, d);
  }
};

// Distances that one load of 16 bytes brings.
template <typename T>
constexpr int AT_ONCE = 16 / sizeof(T);

// A team calls visit(distance) for each of n distances, which are aligned to 16 bytes.
template <typename T, typename Visit>
__device__ __forceinline__ void visit_all(const T* distances, int n, Team team, Visit visit) {
  constexpr int N = AT_ONCE<T>;
  for (int v = team.thread; v < n / N; v += team.threads) {
    const auto some = reinterpret_cast<const Vector<T, N>*>(distances)[v];
#pragma unroll
    for (int j = 0; j < N; ++j) visit(static_cast<unsigned>(some.x[j]));
  }
  if (team.thread < n % N) visit(static_cast<unsigned>(distances[n - n % N + team.thread]));
}

// The spread of a thread's share of n distances of 16 bits, all visible, aligned to 16 bytes.
__device__ __forceinline__ Spread spread_of(const unsigned short* distances, int n, Team team) {
  unsigned least = ~0u, most = 0;  // of two distances each
  for (int v = team.thread; v < n / 8; v += team.threads) {
    const uint4 some = reinterpret_cast<const uint4*>(distances)[v];
    least = __vminu2(least, __vminu2(__vminu2(some.x, some.y), __vminu2(some.z, some.w)));
    most = __vmaxu2(most, __vmaxu2(__vmaxu2(some.x, some.y), __vmaxu2(some.z, some.w)));
  }
  Spread own{0, min(least & 0xffff, least >> 16), max(most & 0xffff, most >> 16)};
  if (team.thread < n % 8) own.add(distances[n - n % 8 + team.thread]);
  return own;
}

// The n lowest bits; none for n < 0, and all for n > 31.
__device__ __forceinline__ unsigned low_bits(int n) {
  return n <= 0 ? 0 : n >= LANES ? ALL_LANES : (1u << n) - 1;
}

// The bits 0 to 15 of x at the even places.
__device__ __forceinline__ unsigned every_other(unsigned x) {
  x = (x | x << 8) & 0x00ff00ff;
  x = (x | x << 4) & 0x0f0f0f0f;
  x = (x | x << 2) & 0x33333333;
  return (x | x << 1) & 0x55555555;
}

// Of 32 tokens of a lane: those with distances below `first`, and those with the `width` next ones.
struct Marks {
  unsigned below, inside;
};

// The marks of the tokens `start` to start + 31, at 32 distances that are aligned to 64 bytes.
// Lanes begin at different vectors, so that they meet different banks.
template <typename T>
__device__ __forceinline__ Marks mark_row(
  const T* distances, int start, unsigned first, unsigned width
) {
  constexpr int N = AT_ONCE<T>, VECTORS = LANES / N;
  const int turn = lane_index() * VECTORS / 8 % VECTORS;
  Marks marks{0, 0};
#pragma unroll
  for (int v = 0; v < VECTORS; ++v) {
    const auto some =
        reinterpret_cast<const Vector<T, N>*>(distances + start)[(v + turn) % VECTORS];
#pragma unroll
    for (int j = 0; j < N; ++j) {
      const unsigned d = some.x[j];
      if (d < first) marks.below |= 1u << (N * v + j);
      if (d - first < width) marks.inside |= 1u << (N * v + j);
    }
  }
  return {__funnelshift_l(marks.below, marks.below, N * turn),
          __funnelshift_l(marks.inside, marks.inside, N * turn)};
}

// As mark_row, two distances at a time, where all are below 2^15. The top bit of a half of
// 2^15 + limit - 1 - d is set if d < limit.
__device__ __forceinline__ Marks mark_pairs(
  const unsigned short* distances, int start, unsigned first, unsigned width
) {
  constexpr unsigned TOPS = 0x80008000, BOTH = 0x00010001;
  const unsigned low = TOPS - BOTH + min(first, 0x8000u) * BOTH;
  const unsigned high = TOPS - BOTH + min(first + width, 0x8000u) * BOTH;
  const int turn = lane_index() / 2 % 4;
  unsigned below = 0, up_to = 0;  // of even tokens in the lower half, of odd ones in the upper
#pragma unroll
  for (int v = 0; v < 4; ++v) {
    const uint4 some = reinterpret_cast<const uint4*>(distances + start)[(v + turn) % 4];
    const unsigned words[4] = {some.x, some.y, some.z, some.w};
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      below = below >> 1 | ((low - words[j]) & TOPS);
      up_to = up_to >> 1 | ((high - words[j]) & TOPS);
    }
  }
  const auto in_order = [&](unsigned x) {
    const unsigned bits = every_other(x & 0xffff) | every_other(x >> 16) << 1;
    return __funnelshift_l(bits, bits, 8 * turn);
  };
  below = in_order(below);
  return {below, in_order(up_to) & ~below};
}

// Reads the distances as they are; see select_nearest.
template <typename T>
struct AsStored {
  const T* distances;
  __device__ unsigned operator()(int i) const { return distances[i]; }
};
// What is known about the distances of a row.
enum class Known {
  NOTHING,
  ALL_THERE,  // all tokens are visible, the row is aligned to 64 bytes, in shared memory
  BELOW_2_15  // also, all distances are below 2^15
};

// Selects up to K of n tokens by distances[0 .. n): the first `sinks` and the last `recent` visible
// tokens, and the nearest of the other visible ones. Among equal distances the last token wins.
// Calls emit(position, token, distance) once for each selected token, with positions 0, 1, ... in
// the order of the tokens. Returns their number. The whole block must call it, with sinks +
// recent <= K. It ends with a barrier.
//
// Each warp of the team has a run of consecutive tokens. Their number is a multiple of 32, except for
// the last run. `own` is the spread of the tokens that a thread has visited. A thread may have written
// the distances of those tokens just before the call. emit may overwrite the distance of its token.
template <Known KNOWN, typename T, typename Emit>
__device__ int select_in_team(
  const T* distances, int n, int K, int sinks, int recent, Team team, SelectionScratch& s, Spread own,
  Emit emit
) {
  constexpr bool ALL_THERE = KNOWN != Known::NOTHING;
  const int lane = lane_index(), warp = team.warp(), warps = team.warps();
  const int run = (n + team.threads - 1) / team.threads * LANES;
  const int begin = min(warp * run, n), end = min(begin + run, n);
  const int first_warp = team.number * warps;
  auto& found = s.of[team.number];
  unsigned* const bins = s.bins(team);
  const auto clear = [&] {
#pragma unroll 2
    for (int i = team.thread; i < team.bins() / 4; i += team.threads) {
      reinterpret_cast<uint4*>(bins)[i] = uint4{0, 0, 0, 0};
    }
  };

  // Count the visible tokens, before this warp and in total; find their smallest and largest
  // distance.
  if (!ALL_THERE) own.seen = __reduce_add_sync(ALL_LANES, own.seen);
  own.least = __reduce_min_sync(ALL_LANES, own.least);
  own.most = __reduce_max_sync(ALL_LANES, own.most);
  if (lane == 0) {
    s.counts[0][first_warp + warp] = own.seen;
    s.counts[1][first_warp + warp] = own.least;
    s.counts[2][first_warp + warp] = own.most;
  }
  if (team.thread == 0) {
    found.few = 0;
    found.begin = sinks;
    found.end = n;
  }
  clear();
  __syncthreads();
  unsigned visible = ALL_THERE ? n : 0, seen_before = 0, least = ~0u, most = 0;
#pragma unroll 1
  for (int w = 0; w < warps; ++w) {
    if (!ALL_THERE) {
      const unsigned seen = s.counts[0][first_warp + w];
      if (w < warp) seen_before += seen;
      visible += seen;
    }
    least = min(least, s.counts[1][first_warp + w]);
    most = max(most, s.counts[2][first_warp + w]);
  }

  // With K visible tokens or fewer, all are taken and none must be forced. Else the visible tokens
  // outside [free_begin, free_end) are forced.
  const bool chooses = visible > static_cast<unsigned>(K);
  const bool forces = chooses && sinks + recent > 0;
  int free_begin = forces ? sinks : 0, free_end = forces ? n - recent : n;
  if (!ALL_THERE) {
    if (forces) {
      const unsigned after = visible - recent;
      unsigned rank = seen_before;
      for (int start = begin; start < end; start += LANES) {
        const int i = start + lane;
        const bool there = i < end && distances[i] != NOT_THERE<T>;
        const unsigned here = __ballot_sync(ALL_LANES, there);
        const unsigned at = rank + __popc(here & low_bits(lane));
        if (there && at == static_cast<unsigned>(sinks)) found.begin = i;
        if (there && at == after) found.end = i;
        rank += __popc(here);
      }
    }
    __syncthreads();
    if (forces) free_begin = found.begin, free_end = found.end;
  }

  // Find the threshold among the free tokens. Distances below `first` are taken. Of the distances from
  // `first` to first + width - 1, `inside`, all are taken except `skipped`. A round narrows the
  // range to one bin. The rounds end where it has one distance, where none is skipped, or where it has
  // few tokens, which are compared with each other. One round is nearly always enough.
  unsigned wanted = K - sinks - recent, skipped = 0, inside = 0;
  unsigned first = chooses ? 0 : NOT_THERE<T>, width = 0;
  int shift = 0;
  bool searching = chooses && wanted > 0;
  if (searching) first = least, width = most - least + 1;
  const bool searched = searching;
  for (bool again = false;; again = true) {
    if (searching) {
      shift = max(__clz(team.bins() - 1) - __clz(width - 1), 0);  // width <= bins << shift
      const auto change = [&](unsigned d, unsigned by) {
        if (d - first < width) atomicAdd(&bins[(d - first) >> shift], by);
      };
      if constexpr (ALL_THERE) {
        if (!again) {  // all tokens are in the range
          visit_all(distances, n, team, [&](unsigned d) { atomicAdd(&bins[(d - first) >> shift], 1u); });
        } else {
          visit_all(distances, n, team, [&](unsigned d) { change(d, 1); });
        }
      } else {
        for (int i = begin + lane; i < end; i += LANES) change(distances[i], 1);
      }
      if (forces) {  // a sum modulo 2^32, so the order does not matter
#pragma unroll 1
        for (int i = team.thread; i < free_begin; i += team.threads) change(distances[i], ~0u);
#pragma unroll 1
        for (int i = free_end + team.thread; i < n; i += team.threads) change(distances[i], ~0u);
      }
    }
    find_bin(team, s, searching, wanted);
    if (searching) {
      first += found.bin << shift;
      wanted -= found.before;
      inside = found.inside;
      skipped = inside - wanted;
      width = min(1u << shift, most - first + 1);
      searching = shift > 0 && skipped > 0 && inside > FEW;
    }
    if (team.teams == 1 ? !searching : !__syncthreads_or(searching)) break;
    if (searching) clear();
    __syncthreads();
  }
  const bool compares = searched && skipped > 0 && shift > 0;

  // A lane gets the marks of 32 tokens, so a warp marks 1024 at a time. If the run is longer than what
  // is kept, the others are marked again below.
  constexpr int MARKED = LANES * LANES, KEPT = ALL_THERE ? 2 : 1;
  const auto mark = [&](int start) {
    const int own_start = start + LANES * lane;
    Marks marks{0, 0};
    unsigned there = low_bits(end - own_start);
    if constexpr (ALL_THERE) {
      if (own_start < end) {
        if constexpr (KNOWN == Known::BELOW_2_15) {
          marks = mark_pairs(distances, own_start, first, width);
        } else {
          marks = mark_row(distances, own_start, first, width);
        }
      }
    } else {
      for (int row = 0; row < LANES && start + row * LANES < end; ++row) {
        const int i = start + row * LANES + lane;
        const unsigned d = i < end ? distances[i] : NOT_THERE<T>;
        const unsigned below = __ballot_sync(ALL_LANES, d < first);
        const unsigned inside = __ballot_sync(ALL_LANES, d - first < width);
        const unsigned visible = forces ? __ballot_sync(ALL_LANES, d != NOT_THERE<T>) : 0;
        if (lane == row) marks.below = below, marks.inside = inside, there = visible;
      }
    }
    if (forces) {
      const unsigned forced =
          there & (low_bits(free_begin - own_start) | ~low_bits(free_end - own_start));
      marks.below |= forced;
      marks.inside &= ~forced;
    }
    if (ALL_THERE) marks.below &= there, marks.inside &= there;
    return marks;
  };
  Marks kept[KEPT];
#pragma unroll
  for (int p = 0; p < KEPT; ++p) kept[p] = Marks{0, 0};
  const auto part = [&](int p) {
    return p == 0 ? kept[0] : ALL_THERE ? kept[KEPT - 1] : mark(begin + p * MARKED);
  };
  const int parts = (end - begin + MARKED - 1) / MARKED;
#pragma unroll
  for (int p = 0; p < KEPT; ++p) {
    if (begin + p * MARKED < end) kept[p] = mark(begin + p * MARKED);
  }
  if (compares) {
#pragma unroll 1
    for (int p = 0; p < parts; ++p) {
      const int start = begin + p * MARKED + LANES * lane;
      for (unsigned rest = part(p).inside; rest != 0; rest &= rest - 1) {
        bins[atomicAdd(&found.few, 1u)] = distances[start + __ffs(rest) - 1];
      }
    }
  }
  __syncthreads();
  if (compares) {
#pragma unroll 1
    for (unsigned i = team.thread; i < inside; i += team.threads) {
      const unsigned d = bins[i];
      unsigned less = 0, equal = 0, earlier = 0;
#pragma unroll 1
      for (unsigned j = 0; j < inside; ++j) {
        less += bins[j] < d;
        equal += bins[j] == d;
        earlier += bins[j] == d && j < i;
      }
      if (earlier == 0 && less < wanted && wanted <= less + equal) {
        found.threshold = d;
        found.skipped = less + equal - wanted;
      }
    }
  }
  __syncthreads();
  if (compares) {
    first = found.threshold, width = 1, skipped = found.skipped;
#pragma unroll
    for (int p = 0; p < KEPT; ++p) {
      for (unsigned rest = kept[p].inside; rest != 0; rest &= rest - 1) {
        const unsigned bit = rest & -rest;
        const unsigned d = distances[begin + p * MARKED + LANES * lane + __ffs(rest) - 1];
        if (d < first) kept[p].below |= bit;
        if (d != first) kept[p].inside &= ~bit;
      }
    }
  }

  // Count the marked tokens before each warp.
  unsigned below = 0, equal = 0;
#pragma unroll 1
  for (int p = 0; p < parts; ++p) {
    const Marks marks = part(p);
    below += __popc(marks.below);
    equal += __popc(marks.inside);
  }
  below = __reduce_add_sync(ALL_LANES, below);
  equal = __reduce_add_sync(ALL_LANES, equal);
  if (lane == 0) {
    s.counts[0][first_warp + warp] = below;
    s.counts[1][first_warp + warp] = equal;
  }
  __syncthreads();
  below = equal = 0;
#pragma unroll 1
  for (int w = 0; w < warp; ++w) {
    below += s.counts[0][first_warp + w];
    equal += s.counts[1][first_warp + w];
  }

#pragma unroll 1
  for (int p = 0; p < parts; ++p) {
    const Marks marks = part(p);
    const unsigned below_up_to = sum_up_to(__popc(marks.below));
    const unsigned equal_up_to = sum_up_to(__popc(marks.inside));
    unsigned own_below = below + below_up_to - __popc(marks.below);
    unsigned own_equal = equal + equal_up_to - __popc(marks.inside);
    for (unsigned rest = marks.below | marks.inside; rest != 0; rest &= rest - 1) {
      const int bit = __ffs(rest) - 1, i = begin + p * MARKED + LANES * lane + bit;
      const bool is_equal = marks.inside >> bit & 1;
      if (!is_equal || own_equal >= skipped) {
        emit(static_cast<int>(own_below + max(own_equal, skipped) - skipped), i, distances[i]);
      }
      own_below += !is_equal;
      own_equal += is_equal;
    }
    below += __shfl_sync(ALL_LANES, below_up_to, LANES - 1);
    equal += __shfl_sync(ALL_LANES, equal_up_to, LANES - 1);
  }
  __syncthreads();
  return min(visible, static_cast<unsigned>(K));
}

// The spread of a thread's share of the run of its warp, for a row of any kind. See select_nearest.
template <typename T, typename Read>
__device__ __forceinline__ Spread spread_of_runs(const T*, int n, Team team, Read read) {
  const int run = (n + team.threads - 1) / team.threads * LANES;
  const int begin = min(team.warp() * run, n), end = min(begin + run, n);
  Spread own = Spread::none();
  for (int i = begin + lane_index(); i < end; i += LANES) {
    const unsigned d = read(i);
    if (d != NOT_THERE<T>) {
      ++own.seen;
      own.add(d);
    }
  }
  return own;
}

// As select_in_team, for a row of any kind and the whole block. There must be a barrier between the
// writes to `distances` and the call.
//
// read(i) is called once for each token, before all else. It returns the distance of the token, and
// may write it to distances[i] first. No other thread reads distances[i] before the next barrier.
template <typename T, typename Read, typename Emit>
__device__ __forceinline__ int select_nearest(
  const T* distances, int n, int K, int sinks, int recent, SelectionScratch& s, Read read, Emit emit
) {
  const Team team = whole_block();
  const Spread own = spread_of_runs(distances, n, team, read);
  return select_in_team<Known::NOTHING>(distances, n, K, sinks, recent, team, s, own, emit);
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
  int taken, Int row, int chunk, int K, Team team, const Candidates<T>& out
) {
  const bool whole = out.slots == 0;
  const Int first = (row * out.chunks + chunk) * out.slots;
#pragma unroll 1
  for (int i = taken + team.thread; i < (whole ? K : out.slots); i += team.threads) {
    if (whole) {
      out.indices[row * K + i] = -1;
    } else {
      out.distances[first + i] = NOT_THERE<T>;
    }
  }
}

// Selects from the distances of a chunk whose first token is `start`, as select_in_team does, and stores
// the result. A team without a row has n = 0, and `stores` is false. If `marks`, the distance of
// each selected token becomes NOT_THERE. The whole block must call it.
template <Known KNOWN, typename T>
__device__ __forceinline__ void select_from_chunk(
  T* distances, int n, int start, Int row, int chunk, int K, int sinks, int recent, Team team,
  SelectionScratch& s, Spread own, const Candidates<T>& out, bool stores, bool marks = false
) {
  const bool whole = out.slots == 0;
  const Int first = (row * out.chunks + chunk) * out.slots;
  int* tokens = whole ? out.indices + row * K : out.tokens + first;
  T* near = whole ? nullptr : out.distances + first;
  const int taken = select_in_team<KNOWN>(
    distances, n, K, sinks, recent, team, s, own,
    [&](int at, int i, unsigned d) {
      tokens[at] = start + i;
      if (near) near[at] = d;
      if (marks) distances[i] = NOT_THERE<T>;
    }
  );
  if (stores) leave_unused(taken, row, chunk, K, team, out);
}
