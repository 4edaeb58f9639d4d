// Attention of one query to some of its tokens, by a block of ATTEND_THREADS threads.
#pragma once
#include "score.cuh"
#include "softmax.cuh"

constexpr int ATTEND_THREADS = 128;
constexpr int ATTEND_WARPS = ATTEND_THREADS / LANES;

// The tokens of one query: those of `indices`, or `count` from `first` on if attention is dense. An
// index below 0 means no token. An index of S or more counts as none, so that nothing outside k and
// v is read. A branch in here would keep the compiler from loading several indices at a time.
struct Tokens {
  const int* indices;
  bool dense;
  int count, first, S;

  __device__ int named(int i) const {
    int token = -1;
    if (i < count) token = dense ? first + i : indices[i];
    return token;
  }

  __device__ int operator()(int i) const {
    const int token = named(i);
    return token < S ? token : -1;
  }
};

__device__ __forceinline__ bool is_finite(float x) { return x - x == 0; }

__device__ __forceinline__ float nan() { return __uint_as_float(0x7fffffffu); }

// exp(x - top), where `top` is the largest of several x. If there is no token, both are -inf.
__device__ __forceinline__ float share(float x, float top) {
  return x == top ? 1.0f : expf(x - top);
}

// The partial sums of the warps of a block: their largest logits `tops`, the sums of exp(logit - top),
// `masses`, and sums (ATTEND_WARPS, DT) of exp(logit - top) v.
template <int DT>
struct WarpSums {
  float *sums, *tops, *masses;

  __device__ float top() const {
    float largest = no_token();
    for (int w = 0; w < ATTEND_WARPS; ++w) largest = fmaxf(largest, tops[w]);
    return largest;
  }

  __device__ float mass(float top) const {
    float total = 0;
    for (int w = 0; w < ATTEND_WARPS; ++w) total += share(tops[w], top) * masses[w];
    return total;
  }

  __device__ float sum(int d, float top) const {
    float total = 0;
    for (int w = 0; w < ATTEND_WARPS; ++w) total += share(tops[w], top) * sums[w * DT + d];
    return total;
  }
};

template <int DT, int VEC>
constexpr int SHARERS = DT / VEC < LANES ? DT / VEC : LANES;  // lanes that share a token: a team

// Whether a query of this size stays in registers. Up to Dt = 1024 they hold the query, a key and its
// value together. Above, the query stays in shared memory, where each thread writes its own part, and
// a value is loaded after its key has been used.
template <int DT, int VEC>
constexpr bool EARLY = DT / SHARERS<DT, VEC> < 64;

// The place of a thread: its lane in its team, and the numbers of its team and warp in the block. A
// kernel finds it before all else. Found later, it costs registers that the largest variants lack.
struct Position {
  int lane, team, warp;
};

template <int DT, int VEC>
__device__ __forceinline__ Position position() {
  constexpr int TEAM = SHARERS<DT, VEC>;
  const int lane = threadIdx.x % TEAM, team = threadIdx.x / TEAM, warp = threadIdx.x / LANES;
  return {lane, team, warp};
}

// From a query and a key to a logit: scale times their product, capped. A soft cap of 0 means none.
struct Logits {
  float scale, soft_cap;
};

// The type of head_dims in the loop. Comparisons of 32 bits are faster. At Dt = 1024 the compiler then
// keeps more in registers than there are.
template <int DT>
struct SizeOf {
  using Type = int;
};
template <>
struct SizeOf<1024> {
  using Type = Int;
};

// Attends to the tokens begin to end - 1 of one query, into the sums of each warp. q and k have
// key_size coordinates, v has value_size. Without GENERAL both are equal, and there is no cap.
// shared_query has room for DT floats unless EARLY. The largest index of S or more, plus 1, goes to
// *beyond, unless that is null. The caller must set a barrier before it reads the sums.
//
// Products that are not finite give NaN if `again`: float32 may have overflowed, and the cap would
// hide that from a caller who then computes again in float64.
template <typename TQ, typename TK, int DT, int VEC, bool GENERAL>
__device__ __forceinline__ void attend_tokens(
    Position at, const TQ* q_row, Strided<TK> keys, Strided<TK> values, int b, int head,
    Tokens tokens, int begin, int end, Int key_size, Int value_size, Logits logits, bool again,
    float* shared_query, WarpSums<DT> out, unsigned* beyond) {
  using Size = typename SizeOf<DT>::Type;
  const Size D = key_size, Dv = GENERAL ? value_size : key_size;
  constexpr int TEAM = SHARERS<DT, VEC>;
  constexpr int PER = DT / (VEC * TEAM);           // vectors per lane
  constexpr int TEAMS = ATTEND_THREADS / TEAM;     // tokens per block at a time
  constexpr int AHEAD = PER < 4 ? 4 / PER : 1;     // tokens per team at a time
  constexpr bool IN_REGISTERS = EARLY<DT, VEC>;
  const int lane = at.lane, team = at.team, warp = at.warp;
  int largest = -1;  // index that this thread has met
  float query[IN_REGISTERS ? PER : 1][VEC], sum[PER][VEC];
#pragma unroll
  for (int i = 0; i < PER; ++i) {
#pragma unroll
    for (int j = 0; j < VEC; ++j) {
      const int d = (i * TEAM + lane) * VEC + j;
      float& mine = IN_REGISTERS ? query[IN_REGISTERS ? i : 0][j] : shared_query[IN_REGISTERS ? 0 : d];
      mine = d < D ? to_float(q_row[d]) : 0.0f;
      sum[i][j] = 0;
    }
  }

  // Online softmax: `top` is the largest logit so far, mass = sum of exp(logit - top) and
  // sum = sum of exp(logit - top) v.
  float top = no_token(), mass = 0;
  using Part = Packed<TK, VEC>;
  // Without a branch a missing token takes the row of token 0, and its parts become 0 after the load.
  // Above Dt = 1024 that would need more registers than there are.
  const auto load = [&](const Strided<TK>& rows, int token, Size size, Part (&parts)[PER]) {
    const TK* const from = rows.row(b, head, max(token, 0));
#pragma unroll
    for (int i = 0; i < PER; ++i) {
      const int d = (i * TEAM + lane) * VEC;
      const bool there = token >= 0 && d < size;
      if (IN_REGISTERS || there) parts[i] = *reinterpret_cast<const Part*>(from + (d < size ? d : 0));
      if (!there) parts[i] = Part{};
    }
  };
  for (int start = begin; start < end; start += TEAMS * AHEAD) {
    Part key[AHEAD][PER], value[AHEAD][PER];
    int token[AHEAD];
#pragma unroll
    for (int a = 0; a < AHEAD; ++a) {
      const int place = start + a * TEAMS + team;
      const int named = place < end ? tokens.named(place) : -1;
      largest = max(largest, named);
      token[a] = named < tokens.S ? named : -1;
    }
#pragma unroll
    for (int a = 0; a < AHEAD; ++a) {
      load(keys, token[a], D, key[a]);
      if (IN_REGISTERS) load(values, token[a], Dv, value[a]);
    }
    float logit[AHEAD];
    float larger = top;
#pragma unroll
    for (int a = 0; a < AHEAD; ++a) {
      float dot = 0;
#pragma unroll
      for (int i = 0; i < PER; ++i) {
#pragma unroll
        for (int j = 0; j < VEC; ++j) {
          const float x = IN_REGISTERS ? query[IN_REGISTERS ? i : 0][j]
                                : shared_query[IN_REGISTERS ? 0 : (i * TEAM + lane) * VEC + j];
          dot += x * to_float(key[a][i].element(j));
        }
      }
#pragma unroll
      for (int stride = TEAM / 2; stride > 0; stride /= 2) {
        dot += __shfl_xor_sync(ALL_LANES, dot, stride);
      }
      logit[a] = logits.scale * dot;
      if (GENERAL && logits.soft_cap > 0) {
        const bool overflowed = again && !is_finite(logit[a]);
        logit[a] = overflowed ? nan() : Capped{logits.soft_cap}(logit[a]);
      }
      if (token[a] >= 0) larger = fmaxf(larger, logit[a]);
    }
    const float shrink = share(top, larger);  // the sums so far are relative to the old top
    top = larger;
    mass *= shrink;
#pragma unroll
    for (int i = 0; i < PER; ++i) {
#pragma unroll
      for (int j = 0; j < VEC; ++j) sum[i][j] *= shrink;
    }
#pragma unroll
    for (int a = 0; a < AHEAD; ++a) {
      if (!IN_REGISTERS) load(values, token[a], Dv, value[a]);
      // expf and not `share`: an infinite logit must become NaN.
      const float p = token[a] >= 0 ? expf(logit[a] - top) : 0.0f;
      mass += p;
#pragma unroll
      for (int i = 0; i < PER; ++i) {
#pragma unroll
        for (int j = 0; j < VEC; ++j) sum[i][j] += p * to_float(value[a][i].element(j));
      }
    }
  }

  if (beyond && largest >= tokens.S) atomicMax(beyond, largest + 1u);

  // Merge the teams of the warp.
#pragma unroll
  for (int stride = TEAM; stride < LANES; stride *= 2) {
    const float other_top = __shfl_xor_sync(ALL_LANES, top, stride);
    const float larger = fmaxf(top, other_top);
    const float own = share(top, larger), other = share(other_top, larger);
    mass = own * mass + other * __shfl_xor_sync(ALL_LANES, mass, stride);
    top = larger;
#pragma unroll
    for (int i = 0; i < PER; ++i) {
#pragma unroll
      for (int j = 0; j < VEC; ++j) {
        sum[i][j] = own * sum[i][j] + other * __shfl_xor_sync(ALL_LANES, sum[i][j], stride);
      }
    }
  }
  if (threadIdx.x % LANES < TEAM) {
#pragma unroll
    for (int i = 0; i < PER; ++i) {
#pragma unroll
      for (int j = 0; j < VEC; ++j) out.sums[warp * DT + (i * TEAM + lane) * VEC + j] = sum[i][j];
    }
  }
  if (threadIdx.x % LANES == 0) {
    out.tops[warp] = top;
    out.masses[warp] = mass;
  }
}
