// From logits to weights: the soft cap, and the sinks.
#pragma once
#include "common.cuh"

// -inf: the largest logit where there is no token.
__device__ __forceinline__ float no_token() { return __uint_as_float(0xff800000u); }

// tanh(x), with a relative error below 2^-21 and without a fused multiplication and addition. Up to
// 0.625 it is x + x^3 p(x^2), with the p of least relative error; above it is 1 - 2 / (exp(2 x) + 1).
__device__ __forceinline__ float tanh_of(float x) {
  const float size = fabsf(x), square = __fmul_rn(x, x);
  float p = -0.005704986397176981f;
  p = __fadd_rn(__fmul_rn(p, square), 0.02063908614218235f);
  p = __fadd_rn(__fmul_rn(p, square), -0.05373971536755562f);
  p = __fadd_rn(__fmul_rn(p, square), 0.13331441581249237f);
  p = __fadd_rn(__fmul_rn(p, square), -0.3333328068256378f);
  const float small = __fadd_rn(size, __fmul_rn(__fmul_rn(size, square), p));
  const float power = exp2f(__fmul_rn(size, 2.88539008f));
  const float large = __fsub_rn(1.0f, __fdiv_rn(2.0f, __fadd_rn(power, 1.0f)));
  return copysignf(size < 0.625f ? small : large, x);
}

// What makes a logit of a product. Two kinds, so that the loops without a cap have no branch for it.
struct Uncapped {
  __device__ __forceinline__ float operator()(float x) const { return x; }
};
struct Capped {
  float soft_cap;

  __device__ __forceinline__ float operator()(float x) const {
    return __fmul_rn(soft_cap, tanh_of(__fdiv_rn(x, soft_cap)));
  }
};

// The sink of a query head; -inf where there is none. It adds exp(sink) to the weights of a row, and
// no value.
__device__ __forceinline__ float sink_of(const float* sink_logits, Int h) {
  return sink_logits ? sink_logits[h] : no_token();
}
