// One choice for the G query heads of a KV head: from the levels of their estimates to ranks of the
// attention that each token gets from all of them.
//
// Bound by the bytes of the levels, 2 a token and query head, which are read three times: for a
// row's highest level, for its sum of weights, and for the heads' shares. From level to sum all is
// integers, so that no order of additions matters.
#include "score.cuh"

constexpr int STEPS = 4;  // levels to a factor of 2 in attention

// The weight of a token `below` levels below the highest: 2^(16 - below / STEPS), rounded for the
// first STEPS of them and then shifted; 0 after 17 halvings.
__device__ __forceinline__ int weight_of(int below) {
  const int i = min(below, 32 * STEPS - 1), step = i % STEPS;
  const int first = step < 2 ? (step == 0 ? 65536 : 55109) : (step == 2 ? 46341 : 38968);
  return first >> i / STEPS;
}

__device__ __forceinline__ int tokens_of(const int* lengths, Int length, Int b, Int l, Int L) {
  const int n = lengths ? min(static_cast<Int>(lengths[b]), length) : length;
  return visible_tokens(n, l, L);
}

// Grid: rows of levels (B, H, L, S), each with its highest level and the inverse of its sum of
// weights. Sequence b has lengths[b] tokens, or `length` where lengths is null.
__global__ void __launch_bounds__(512) weigh(
    const short* levels, const int* lengths, Int length, Int H, Int L, Int S, int* highest,
    float* inverse) {
  __shared__ int top;
  __shared__ Word total;
  const Int row = blockIdx.x;
  const int n = tokens_of(lengths, length, row / (H * L), row % L, L);
  levels += row * S;
  if (threadIdx.x == 0) {
    top = -32768;  // the least of int16
    total = 0;
  }
  __syncthreads();
  int own = -32768;
  for (int i = threadIdx.x; i < n; i += blockDim.x) own = max(own, static_cast<int>(levels[i]));
  atomicMax(&top, own);
  __syncthreads();
  const int best = top;
  Word sum = 0;  // 2^16 a token at most
  for (int i = threadIdx.x; i < n; i += blockDim.x) sum += weight_of(best - levels[i]);
  atomicAdd(&total, sum);
  __syncthreads();
  if (threadIdx.x == 0) {
    highest[row] = best;
    inverse[row] = __fdiv_rn(1.0f, static_cast<float>(static_cast<Int>(max(total, Word{1}))));
  }
}

// Grid: rows of ranks (B, H_kv, L, S), chunks of `size` tokens. A thread a token adds the heads'
// shares in their order.
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
