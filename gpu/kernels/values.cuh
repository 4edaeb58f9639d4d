// Codes of values, each relative to a base of its head, and one scale byte per token.
#pragma once
#include "center.cuh"

// Codes and bases of one KV head of a sequence.
struct ValueHead {
  Word* codes;            // (T, 64, 2, P)
  unsigned char* scales;  // (T, 64)
  const float* bases;     // (2, D): of the first tile, and of all others
  float cut;              // the outer thresholds, in units of a row's rms
  int D, Dt;              // of values
  float hadamard_scale;
};

// Writes the codes and the scale of one token, from its value. The token's base must be there.
template <int N, typename T>
__device__ __forceinline__ void write_value(const T* value, const ValueHead& head, Int token) {
  constexpr int P = words<N>();
  float x[N];
  load_row(x, value, head.D);
  subtract(x, head.bases + (token < TILE ? 0 : head.D), head.D);
  transform(x, head.Dt, head.hadamard_scale);
  const Cut cut = cut_of(x, head.Dt, -head.cut, 0.0f, head.cut);
  Word* const high = head.codes + token * (2 * P);
  write_codes(x, head.Dt, cut.own, high, high + P, 1);
  if (lane_index() == 0) head.scales[token] = scale_byte(cut.scale);
}
