// A row of head_dim coordinates in the registers of one warp: lane l holds coordinates l, l + 32,
// l + 64, ... in x[0], x[1], x[2], ... So a warp reads 32 neighbours at a time, a ballot gives 32
// neighbouring bits of a plane, and butterflies of stride 32 and more stay inside a lane.
//
// Each lane holds N = max(Dt / 32, 1) values. If Dt < 32, the lanes from Dt on hold 0 and do not
// count.
#pragma once
#include "common.cuh"

// The position (batch, head, token) of a row, where the token axis runs fastest.
struct Place {
  unsigned batch, head, token;
};

// 32-bit divisions cost a quarter of 64-bit ones. They are enough: a launch has fewer than 2^31
// rows.
__device__ __forceinline__ Place place_of(Int row, Int heads, Int tokens) {
  const unsigned r = static_cast<unsigned>(row), n = static_cast<unsigned>(tokens);
  const unsigned h = static_cast<unsigned>(heads);
  return {r / n / h, r / n % h, r % n};
}

template <typename T, int N>
__device__ __forceinline__ void load_row(float (&x)[N], const T* row, Int D) {
#pragma unroll
  for (int j = 0; j < N; ++j) {
    const int i = lane_index() + LANES * j;
    x[j] = i < D ? to_float(row[i]) : 0.0f;
  }
}

template <int N>
__device__ __forceinline__ void store_row(const float (&x)[N], float* row, int size) {
#pragma unroll
  for (int j = 0; j < N; ++j) {
    const int i = lane_index() + LANES * j;
    if (i < size) row[i] = x[j];
  }
}

// The transform, in the order that its bits depend on: strides 1, 2, 4, ..., then the scale. Of two
// partners a and b, the one with the lower index gets a + b and the other a - b.
template <int N>
__device__ __forceinline__ void transform(float (&x)[N], Int Dt, float hadamard_scale) {
  const int lane = lane_index();
#pragma unroll
  for (int stride = 1; stride < LANES; stride *= 2) {
    if (N == 1 && stride >= Dt) break;
#pragma unroll
    for (int j = 0; j < N; ++j) {
      const float other = __shfl_xor_sync(ALL_LANES, x[j], stride);
      x[j] = lane & stride ? __fsub_rn(other, x[j]) : __fadd_rn(x[j], other);
    }
  }
#pragma unroll
  for (int step = 1; step < N; step *= 2) {
#pragma unroll
    for (int j = 0; j < N; ++j) {
      if (j & step) continue;
      const float a = x[j], b = x[j + step];
      x[j] = __fadd_rn(a, b);
      x[j + step] = __fsub_rn(a, b);
    }
  }
#pragma unroll
  for (int j = 0; j < N; ++j) x[j] = __fmul_rn(x[j], hadamard_scale);
}

// Lane p gets word p of a bit plane, in which coordinate lane + 32 j is bit(j). P = N / 2, rounded
// up, is at most 32, so every word has a lane. The lanes from P on get 0. Bits from Dt on are 0.
template <int N, typename Bit>
__device__ __forceinline__ Word pack(Int Dt, Bit bit) {
  const int lane = lane_index();
  Word mine = 0;
#pragma unroll
  for (int j = 0; j < N; ++j) {
    const bool counts = N > 1 || lane < Dt;
    const Word half = __ballot_sync(ALL_LANES, counts && bit(j));
    if (lane == j / 2) mine |= half << (j % 2 * 32);
  }
  return mine;
}

// P: words per bit plane.
template <int N>
__device__ __forceinline__ constexpr int words() {
  return (N + 1) / 2;
}

// The sum of term(j) over the coordinates lane + 32 j, in the order that its bits depend on. There
// are sixteen partial sums, and each takes every sixteenth coordinate, in ascending order. Then the
// upper half of the sums is added to the lower half, until one is left. Lanes l and l + 16 hold the
// same partial sum, and every lane gets the total. The lanes from Dt on add 0, which changes no
// sum, because no sum is -0.
template <int N, typename Term>
__device__ __forceinline__ float lane_sums(Term term) {
  const bool upper = lane_index() >= LANES / 2;
  float sum = 0.0f;
#pragma unroll
  for (int j = 0; j < N; ++j) {
    const float own = term(j), other = __shfl_xor_sync(ALL_LANES, own, LANES / 2);
    sum = __fadd_rn(sum, upper ? other : own);
    sum = __fadd_rn(sum, upper ? own : other);
  }
#pragma unroll
  for (int half = LANES / 4; half > 0; half /= 2) {
    sum = __fadd_rn(sum, __shfl_xor_sync(ALL_LANES, sum, half));
  }
  return sum;
}

// The largest |x| of a row, without NaN; 0 if all are NaN.
template <int N>
__device__ __forceinline__ float largest_of(const float (&x)[N]) {
  float largest = 0.0f;
#pragma unroll
  for (int j = 0; j < N; ++j) largest = fmaxf(largest, fabsf(x[j]));
#pragma unroll
  for (int step = 1; step < LANES; step *= 2) {
    largest = fmaxf(largest, __shfl_xor_sync(ALL_LANES, largest, step));
  }
  return largest;
}

// The number of thresholds that are < x; 0 for NaN.
__device__ __forceinline__ int code_of(float x, const float* thresholds) {
  return (thresholds[0] < x) + (thresholds[1] < x) + (thresholds[2] < x);
}

// Writes both planes of a row's codes: lane p writes word p to high[p * step] and low[p * step].
template <int N>
__device__ __forceinline__ void write_codes(
    const float (&x)[N], Int Dt, const float* thresholds, Word* high, Word* low, Int step) {
  const float own[3] = {thresholds[0], thresholds[1], thresholds[2]};
  const auto code = [&](int j) { return code_of(x[j], own); };
  const Word upper = pack<N>(Dt, [&](int j) { return code(j) >= 2; });
  const Word lower = pack<N>(Dt, [&](int j) { return code(j) % 2 == 1; });
  const int p = lane_index();
  if (p < words<N>()) {
    high[p * step] = upper;
    low[p * step] = lower;
  }
}

// Writes the planes of a query for the weighted metric, `bits` times P words: the signs, then the
// weights rint(|x| / m * wmax), most significant bit first, where m is the largest |x|.
template <int N>
__device__ __forceinline__ void write_query(const float (&x)[N], Int Dt, int bits, Word* planes) {
  const float largest = largest_of(x);
  const float wmax = static_cast<float>((1 << (bits - 1)) - 1);
  unsigned weight[N];
#pragma unroll
  for (int j = 0; j < N; ++j) {
    const float share = __fdiv_rn(fabsf(x[j]), largest);
    weight[j] = share == share ? static_cast<unsigned>(rintf(__fmul_rn(share, wmax))) : 0u;
  }
  const int p = lane_index();
  const Word signs = pack<N>(Dt, [&](int j) { return x[j] > 0.0f; });
  if (p < words<N>()) planes[p] = signs;
  for (int b = bits - 2; b >= 0; --b) {
    planes += words<N>();
    const Word plane = pack<N>(Dt, [&](int j) { return (weight[j] >> b & 1u) != 0; });
    if (p < words<N>()) planes[p] = plane;
  }
}
