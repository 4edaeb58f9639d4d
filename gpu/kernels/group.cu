// weigh, pool: one choice for the G query heads of a KV head. From the levels of their estimates to
// ranks of the attention that each token gets from all of them.
//
// The time is that of the bytes of the levels, 2 per token and query head. They are read three
// times: for the highest level of a row, for its sum of weights, and for the shares of the heads.
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

// Grid: rows of levels (B, H, L, S). Writes the highest level of each row, and the inverse of its
// sum of weights. Sequence b has lengths[b] tokens, or `length` tokens where lengths is null.
__global__ void __launch_bounds__(512) weigh(
    const short* levels, const int* lengths, Int length, Int H, Int L, Int S, int* highest,
    float* inverse) {
  __shared__ int top;
  __shared__ Word total;
  const Int row = blockIdx.x;
  const int n = tokens_of(lengths, length, row / (H * L), row % L, L);
  levels += row * S;
  if (threadIdx.x == 0) {
    top = -32768;  // the lowest level of int16
    total = 0;
  }
  __syncthreads();
  int own = -32768;
  for (int i = threadIdx.x; i < n; i += blockDim.x) own = max(own, static_cast<int>(levels[i]));
  atomicMax(&top, own);
  __syncthreads();
  const int best = top;
  Word sum = 0;  // at most 2^16 per token
  for (int i = threadIdx.x; i < n; i += blockDim.x) sum += weight_of(best - levels[i]);
  atomicAdd(&total, sum);
  __syncthreads();
  if (threadIdx.x == 0) {
    highest[row] = best;
    inverse[row] = __fdiv_rn(1.0f, static_cast<float>(static_cast<Int>(max(total, Word{1}))));
  }
}

// Grid: rows of ranks (B, H_kv, L, S), chunks of `size` tokens. One thread per token adds the
// shares of the heads, in the order of the heads.
__global__ void __launch_bounds__(256) pool(
    const short* levels, const int* lengths, Int length, const int* highest,
    const float* inverse, Int H_kv, Int G, Int L, Int S, Int size, unsigned* ranks) {
  const Int row = blockIdx.x, l = row % L, first_row = row / L * G * L + l;  // of the first head
  const int n = tokens_of(lengths, length, row / (H_kv * L), l, L);
  const Int first = blockIdx.y * size, end = min(first + size, S);
  for (Int i = first + threadIdx.x; i < end; i += blockDim.x) {
    float attention = 0.0f;
    for (Int g = 0; i < n && g < G; ++g) {
      const Int head = first_row + g * L;
      const int weight = weight_of(highest[head] - levels[head * S + i]);
      attention = __fadd_rn(attention, __fmul_rn(static_cast<float>(weight), inverse[head]));
    }
    ranks[row * S + i] = i < n ? rank_of(attention) : 0xffffffffu;
  }
}
