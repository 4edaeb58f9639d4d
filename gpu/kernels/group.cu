// weigh, pool: one choice for the G query heads of a KV head. From the levels of their estimates to
// ranks of the attention that each token gets from all of them.
//
// The time is that of the bytes of the levels, 2 per token and query head. They are read twice: for the
// sum of weights of a row, and for the shares of the heads. estimate.cu has found the highest level.
// Weights and their sums are integers, so the order of the additions does not matter.
#include "score.cuh"

constexpr int STEPS = 4;  // levels per factor of 2 in attention

// The weight of a token that is `below` levels below the highest: 2^(16 - below / STEPS). The first
// STEPS weights are rounded, and the others are these, shifted right. 0 after 17 halvings.
__device__ __forceinline__ int weight_of(int below) {
  const int i = min(below, 32 * STEPS - 1), step = i % STEPS;
  const int first = step < 2 ? (step == 0 ? 65536 : 55109) : (step == 2 ? 46341 : 38968);
  return first >> i / STEPS;
}

__device__ __forceinline__ int tokens_of(const int* lengths, Int length, Int b, Int l, Int L) {
  const int n = lengths ? min(static_cast<Int>(lengths[b]), length) : length;
  return visible_tokens(n, l, L);
}

// The highest level of a row from `highest` of estimate.cu. It is too low by 1 without a token.
__device__ __forceinline__ int top_of(unsigned highest) {
  return static_cast<int>(highest) - LEVEL_BIAS;
}

// Grid: rows of levels (B, H, L, S), chunks of `size` tokens, at most 2^15. Adds the weights of the
// tokens of a chunk to totals (B, H, L), which are 0 before the launch. `highest` (B, H, L) is that
// of estimate.cu. Sequence b has lengths[b] tokens, or `length` tokens where lengths is null.
__global__ void __launch_bounds__(256) weigh(
    const short* levels, const int* lengths, Int length, const unsigned* highest, Int H, Int L, Int S,
    Int size, Word* totals) {
  __shared__ unsigned parts[256 / LANES];
  const Int row = blockIdx.x;
  const int n = tokens_of(lengths, length, row / (H * L), row % L, L);
  const int first = blockIdx.y * size, end = min(first + static_cast<int>(size), n);
  const int top = top_of(highest[row]);
  levels += row * S;
  unsigned sum = 0;  // at most 2^16 per token, so at most 2^31 per block
  for (int i = first + threadIdx.x; i < end; i += blockDim.x) sum += weight_of(top - levels[i]);
  sum = __reduce_add_sync(ALL_LANES, sum);
  if (lane_index() == 0) parts[threadIdx.x / LANES] = sum;
  __syncthreads();
  if (threadIdx.x == 0 && first < n) {
    for (int w = 1; w < static_cast<int>(blockDim.x) / LANES; ++w) sum += parts[w];
    atomicAdd(&totals[row], static_cast<Word>(sum));
  }
}

// Grid: rows of ranks (B, H_kv, L, S), chunks of `size` tokens. One thread per token adds the
// shares of the heads, in the order of the heads. Dynamic shared memory: G of Head.
struct Head {
  int top;
  float inverse;  // of the sum of its weights
};

__global__ void __launch_bounds__(256) pool(
    const short* levels, const int* lengths, Int length, const unsigned* highest,
    const Word* totals, Int H_kv, Int G, Int L, Int S, Int size, unsigned* ranks) {
  DYN_SHARED(Head, heads);
  const Int row = blockIdx.x, l = row % L, first_row = row / L * G * L + l;  // of the first head
  const int n = tokens_of(lengths, length, row / (H_kv * L), l, L);
  const Int first = blockIdx.y * size, end = min(first + size, S);
  for (int g = threadIdx.x; g < G; g += blockDim.x) {
    const Int total = max(totals[first_row + g * L], Word{1});
    heads[g] = {top_of(highest[first_row + g * L]), __fdiv_rn(1.0f, static_cast<float>(total))};
  }
  __syncthreads();
  for (Int i = first + threadIdx.x; i < end; i += blockDim.x) {
    float attention = 0.0f;
    for (Int g = 0; i < n && g < G; ++g) {
      const int weight = weight_of(heads[g].top - levels[(first_row + g * L) * S + i]);
      attention = __fadd_rn(attention, __fmul_rn(static_cast<float>(weight), heads[g].inverse));
    }
    ranks[row * S + i] = i < n ? rank_of(attention) : 0xffffffffu;
  }
}
