// Sums of the estimated weights of tokens: of a thread, a warp and a block.
#pragma once
#include "softmax.cuh"
#include "topk.cuh"

// exp(x) for x <= 0, without a fused multiplication and addition.
__device__ __forceinline__ float weight_of(float x) { return exp2f(__fmul_rn(x, 1.44269504f)); }

// The sum of exp(logit - top) over tokens, and the largest logit, `top`. Without a token they are 0
// and -inf. A logit of -inf adds nothing.
struct Mass {
  float top, sum;

  static __device__ __forceinline__ Mass none() { return {__uint_as_float(0xff800000u), 0.0f}; }

  __device__ __forceinline__ void add(float logit) { add({logit, 1.0f}); }

  __device__ __forceinline__ void add(Mass other) {
    const bool above = other.top > top;
    const float low = above ? top : other.top, high = above ? other.top : top;
    const float share = low == high ? 1.0f : weight_of(__fsub_rn(low, high));
    if (above) {
      sum = __fadd_rn(other.sum, __fmul_rn(share, sum));
    } else if (other.top > none().top) {
      sum = __fadd_rn(sum, __fmul_rn(share, other.sum));
    }
    top = high;
  }
};

// The logit of a token before a cap: scale times its estimate, minus half of the variance of the
// noise. `noise` is that half for the scale 1.
__device__ __forceinline__ float logit_of(float estimate, float s, float scale, float noise) {
  return __fsub_rn(__fmul_rn(scale, estimate), __fmul_rn(noise, __fmul_rn(s, s)));
}

// Caps n logits of a row, by the whole block, unless soft_cap is 0. There must be a barrier before it
// and after it.
__device__ __forceinline__ void cap_all(float* logits, int n, float soft_cap) {
  if (soft_cap <= 0) return;
  for (int i = threadIdx.x; i < n; i += blockDim.x) logits[i] = Capped{soft_cap}(logits[i]);
}

// The number whose rank_of this is; -inf for NaN.
__device__ __forceinline__ float number_of(unsigned rank) {
  return __uint_as_float(rank >> 31 ? rank : rank ^ 0x7fffffffu);
}

// Adds the weights of the tokens that no tier has taken to `others`: of n ranks those that are not
// NOT_THERE. scale_at(i) is the scale of the code of token i. The threads of a block take turns.
template <typename Cap, typename ScaleAt>
__device__ __forceinline__ Mass add_left(
    const unsigned* ranks, int n, float scale, float noise, Cap cap, ScaleAt scale_at, Mass others) {
  for (int i = threadIdx.x; i < n; i += blockDim.x) {
    if (ranks[i] != NOT_THERE<unsigned>) {
      others.add(cap(logit_of(number_of(ranks[i]), scale_at(i), scale, noise)));
    }
  }
  return others;
}

// As add_left. A soft_cap of 0 means none, and then the loop has no branch for it.
template <typename ScaleAt>
__device__ __forceinline__ Mass add_capped(
    const unsigned* ranks, int n, float scale, float noise, float soft_cap, ScaleAt scale_at,
    Mass others) {
  if (soft_cap > 0) {
    return add_left(ranks, n, scale, noise, Capped{soft_cap}, scale_at, others);
  }
  return add_left(ranks, n, scale, noise, Uncapped{}, scale_at, others);
}

// The sum over all threads of a block, in thread 0. `parts` has room for one part per warp. The
// whole block must call it. It ends with a barrier.
__device__ __forceinline__ Mass mass_of_block(Mass own, Mass* parts) {
#pragma unroll
  for (int stride = LANES / 2; stride > 0; stride /= 2) {
    const Mass other{
        __shfl_down_sync(ALL_LANES, own.top, stride), __shfl_down_sync(ALL_LANES, own.sum, stride)};
    own.add(other);
  }
  if (lane_index() == 0) parts[threadIdx.x / LANES] = own;
  __syncthreads();
  if (threadIdx.x == 0) {
    for (int w = 1; w < static_cast<int>(blockDim.x) / LANES; ++w) own.add(parts[w]);
  }
  __syncthreads();
  return own;
}
