// encode_centered: codes of keys relative to the mean of their tile, with a byte of scale a token.
//
// Two launches, since a tile that is not full is coded relative to the mean of the tile before,
// which may become full in the same call: encode_full codes every tile that does, encode_last the
// tokens behind them and the tail. Bound by the bytes of the keys, which encode_full reads twice:
// 64 transformed rows of the largest head_dim would take 512 KB of shared memory.
//
// Both take: k (B, H_kv, S, D), whose sequence b has `spans[1][b]` tokens that go to the places from
// spans[0][b] on, or all `count` that go to the places from `start` on where spans is null;
// planes (2, B, H_kv, T, 8, P, 8), means (B, H_kv, T, Dt), scales (B, H_kv, T, 64) and tail
// (B, H_kv, 64, Dt) with the strides of their leading axes in elements, a head's own part contiguous;
// a head's thresholds at thresholds + head * t_head.
#include "rows.cuh"

// The tokens of a sequence that a call brings: places begin to end - 1.
struct Span {
  Int begin, end;
};

__device__ __forceinline__ Span span_of(const Int* spans, Int b, Int B, Int start, Int count) {
  const Int begin = spans ? spans[b] : start;
  return {begin, begin + (spans ? spans[B + b] : count)};
}

// The nearest of the scales that a byte stands for; the least for what is no positive number.
__device__ __forceinline__ unsigned char scale_byte(float scale) {
  const int bits = scale > 0.0f ? __float_as_int(scale) : 0;
  const int rounded = (bits + (1 << (SCALE_SHIFT - 1))) >> SCALE_SHIFT;  // inf stays below 2^31
  return static_cast<unsigned char>(min(max(rounded - SCALE_LEAST, 0), 255));
}

// What is left of a row behind the mean.
template <int N, typename M>
__device__ __forceinline__ void subtract(float (&x)[N], const M* mean, int size) {
#pragma unroll
  for (int j = 0; j < N; ++j) {
    const int i = lane_index() + LANES * j;
    if (i < size) x[j] = __fsub_rn(x[j], to_float(mean[i]));
  }
}

// Codes and scale of a token, the warp holding what is left of it behind the mean. `planes` are its
// tile's, the low plane p_plane words behind the high one.
template <int N>
__device__ __forceinline__ void write_centered(
    const float (&rest)[N], Int Dt, const float* thresholds, int slot, Word* planes, Int p_plane,
    unsigned char* scales) {
  const float square = lane_sums<N>([&](int j) { return __fmul_rn(rest[j], rest[j]); });
  const float rms = __fsqrt_rn(__fdiv_rn(square, static_cast<float>(Dt)));
  const float own[3] = {
      __fmul_rn(thresholds[0], rms), __fmul_rn(thresholds[1], rms), __fmul_rn(thresholds[2], rms)};
  const float along = lane_sums<N>([&](int j) {
    return __fmul_rn(rest[j], static_cast<float>(code_of(rest[j], own)) - 1.5f);
  });
  Word* const high = planes + slot / 8 * (words<N>() * 8) + slot % 8;
  write_codes(rest, Dt, own, high, high + p_plane, 8);
  if (lane_index() == 0) scales[slot] = scale_byte(__fdiv_rn(square, along));
}

// Grid: tiles from that of a sequence's first new token on, H_kv, B; a block whose tile is not full
// behind the last new token leaves. Tokens of the tile from earlier calls come from the tail.
// Dynamic shared memory: a transformed row for each warp, and the mean.
template <typename T, int N>
__global__ void __launch_bounds__(128) encode_full(
    const T* k, Int k_batch, Int k_head, Int k_token, const Int* spans, Int start, Int count,
    Word* planes, Int p_plane, Int p_batch, Int p_head, Half* means, Int m_batch, Int m_head,
    unsigned char* scales, Int s_batch, Int s_head, float* tail, Int tail_batch, Int tail_head,
    const float* thresholds, Int t_head, Int D, Int Dt, float scale) {
  DYN_SHARED(float, rows);
  const Int head = blockIdx.y, b = blockIdx.z;
  const Span span = span_of(spans, b, gridDim.z, start, count);
  const Int tile = span.begin / TILE + blockIdx.x;
  if (tile >= span.end / TILE) return;
  const int warp = threadIdx.x / LANES, warps = blockDim.x / LANES, size = Dt;
  float* const mean = rows + warps * size;
  k += b * k_batch + head * k_head;
  tail += b * tail_batch + head * tail_head;
  const auto load = [&](float (&x)[N], int slot) {
    const Int key = tile * TILE + slot - span.begin;
    if (key < 0) {
      load_row(x, tail + slot * Dt, Dt);
    } else {
      load_row(x, k + key * k_token, D);
      transform(x, Dt, scale);
    }
  };

  // A thread adds up its coordinates over the tokens in turn.
  for (int i = threadIdx.x; i < size; i += blockDim.x) mean[i] = 0.0f;
  for (int first = 0; first < TILE; first += warps) {
    float x[N];
    load(x, first + warp);
#pragma unroll
    for (int j = 0; j < N; ++j) {
      const int i = lane_index() + LANES * j;
      if (i < size) rows[warp * size + i] = x[j];
    }
    __syncthreads();
    for (int i = threadIdx.x; i < size; i += blockDim.x) {
      float sum = mean[i];
      for (int w = 0; w < warps; ++w) sum = __fadd_rn(sum, rows[w * size + i]);
      mean[i] = sum;
    }
    __syncthreads();
  }
  Half* const written = means + b * m_batch + head * m_head + tile * Dt;
  for (int i = threadIdx.x; i < size; i += blockDim.x) {
    Half rounded;
    from_float(rounded, __fmul_rn(mean[i], 1.0f / TILE));
    if ((rounded.bits & 0x7c00u) == 0x7c00u) rounded.bits = 0;  // inf or NaN
    written[i] = rounded;
    mean[i] = to_float(rounded);
  }
  __syncthreads();

  planes += b * p_batch + head * p_head + tile * (TILE * words<N>());
  scales += b * s_batch + head * s_head + tile * TILE;
  for (int slot = warp; slot < TILE; slot += warps) {
    float x[N];
    load(x, slot);
    subtract(x, mean, size);
    write_centered(x, Dt, thresholds + head * t_head, slot, planes, p_plane, scales);
  }
}

// Grid: H_kv, B. A warp a token, of the last 64 new ones: it goes to its row of the tail, and if its
// tile is not full it is coded relative to the mean of the tile before, 0 in the first one. That
// mean stands as the tile's own too where its first token came in an earlier call, and is copied
// there where it comes in this one.
template <typename T, int N>
__global__ void __launch_bounds__(128) encode_last(
    const T* k, Int k_batch, Int k_head, Int k_token, const Int* spans, Int start, Int count,
    Word* planes, Int p_plane, Int p_batch, Int p_head, Half* means, Int m_batch, Int m_head,
    unsigned char* scales, Int s_batch, Int s_head, float* tail, Int tail_batch, Int tail_head,
    const float* thresholds, Int t_head, Int D, Int Dt, float scale) {
  const Int head = blockIdx.x, b = blockIdx.y;
  const Span span = span_of(spans, b, gridDim.y, start, count);
  const int warp = threadIdx.x / LANES, warps = blockDim.x / LANES, size = Dt;
  const Int open = span.end / TILE;  // full if it has no token
  const bool begins = span.begin <= open * TILE && open * TILE < span.end;
  means += b * m_batch + head * m_head + open * Dt;
  const Half* const before = begins ? (open > 0 ? means - Dt : nullptr) : means;
  if (begins) {
    for (int i = threadIdx.x; i < size; i += blockDim.x) means[i] = before ? before[i] : Half{0};
  }
  k += b * k_batch + head * k_head;
  tail += b * tail_batch + head * tail_head;
  planes += b * p_batch + head * p_head + open * (TILE * words<N>());
  scales += b * s_batch + head * s_head + open * TILE;
  for (Int token = max(span.begin, span.end - TILE) + warp; token < span.end; token += warps) {
    const int slot = token % TILE;
    float x[N];
    load_row(x, k + (token - span.begin) * k_token, D);
    transform(x, Dt, scale);
#pragma unroll
    for (int j = 0; j < N; ++j) {
      const int i = lane_index() + LANES * j;
      if (i < size) tail[slot * size + i] = x[j];
    }
    if (token < open * TILE) continue;
    if (before) subtract(x, before, size);
    write_centered(x, Dt, thresholds + head * t_head, slot, planes, p_plane, scales);
  }
}
