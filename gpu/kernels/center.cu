// encode_full, encode_last: codes of keys relative to the mean of their tile, and one scale byte
// per token.
//
// encode_full codes every tile that becomes full in this call. encode_last codes the tokens after
// these tiles and keeps their rows in open_tile. There are two launches because a tile that is not
// full is coded relative to the mean of the tile before it, and that tile may become full in the
// same call. The time is that of the bytes of the keys. encode_full reads them twice, because 64
// transformed rows of the largest head_dim would take 512 KB of shared memory.
//
// Arguments of both: k (B, H_kv, S, D). Where spans (2, B) is null, each sequence takes `count`
// keys as its tokens start, start + 1, ...; else sequence b takes spans[1][b] keys from token
// spans[0][b] on. planes (2, B, H_kv, T, 8, P, 8), means (B, H_kv, T, Dt), scales (B, H_kv, T, 64)
// and open_tile (B, H_kv, 64, Dt) have strides in elements, and the part of one head is contiguous.
// The thresholds of a head start at thresholds + head * thresholds_head.
#include "warp_row.cuh"

// The new tokens of a sequence: begin to end - 1.
struct Span {
  Int begin, end;
};

__device__ __forceinline__ Span span_of(const Int* spans, Int b, Int B, Int start, Int count) {
  const Int begin = spans ? spans[b] : start;
  return {begin, begin + (spans ? spans[B + b] : count)};
}

// The byte of the nearest scale; 0 for a scale that is not positive, or NaN.
__device__ __forceinline__ unsigned char scale_byte(float scale) {
  const int bits = scale > 0.0f ? __float_as_int(scale) : 0;
  const int rounded = (bits + (1 << (SCALE_SHIFT - 1))) >> SCALE_SHIFT;  // inf stays below 2^31
  return static_cast<unsigned char>(min(max(rounded - SCALE_LEAST, 0), 255));
}

// Subtracts the mean of a tile from a row.
template <int N, typename M>
__device__ __forceinline__ void subtract(float (&x)[N], const M* mean, int size) {
#pragma unroll
  for (int j = 0; j < N; ++j) {
    const int i = lane_index() + LANES * j;
    if (i < size) x[j] = __fsub_rn(x[j], to_float(mean[i]));
  }
}

// Writes the codes and the scale of one token, from its row minus the mean. `planes` and `scales`
// are those of the tile; the low plane begins planes_plane words after the high plane.
template <int N>
__device__ __forceinline__ void write_centered(
    const float (&rest)[N], Int Dt, const float* thresholds, int slot, Word* planes,
    Int planes_plane, unsigned char* scales) {
  const float square = lane_sums<N>([&](int j) { return __fmul_rn(rest[j], rest[j]); });
  const float rms = __fsqrt_rn(__fdiv_rn(square, static_cast<float>(Dt)));
  const float own[3] = {
      __fmul_rn(thresholds[0], rms), __fmul_rn(thresholds[1], rms), __fmul_rn(thresholds[2], rms)};
  const float along = lane_sums<N>([&](int j) {
    return __fmul_rn(rest[j], static_cast<float>(code_of(rest[j], own)) - 1.5f);
  });
  Word* const high = planes + slot / 8 * (words<N>() * 8) + slot % 8;
  write_codes(rest, Dt, own, high, high + planes_plane, 8);
  if (lane_index() == 0) scales[slot] = scale_byte(__fdiv_rn(square, along));
}

// Grid: tiles from the tile of a sequence's first new token on, H_kv, B. A block returns if its
// tile is not full after the last new token. Tokens of the tile from earlier calls come from
// open_tile. Dynamic shared memory: a transformed row per warp, and the mean.
template <typename T, int N>
__global__ void __launch_bounds__(128) encode_full(
    const T* k, Int k_batch, Int k_head, Int k_token, const Int* spans, Int start, Int count,
    Word* planes, Int planes_plane, Int planes_batch, Int planes_head,
    Half* means, Int means_batch, Int means_head,
    unsigned char* scales, Int scales_batch, Int scales_head,
    float* open_tile, Int open_tile_batch, Int open_tile_head,
    const float* thresholds, Int thresholds_head, Int D, Int Dt, float hadamard_scale) {
  DYN_SHARED(float, rows);
  const Int head = blockIdx.y, b = blockIdx.z;
  const Span span = span_of(spans, b, gridDim.z, start, count);
  const Int tile = span.begin / TILE + blockIdx.x;
  if (tile >= span.end / TILE) return;
  const int warp = threadIdx.x / LANES, warps = blockDim.x / LANES, size = Dt;
  float* const mean = rows + warps * size;
  k += b * k_batch + head * k_head;
  open_tile += b * open_tile_batch + head * open_tile_head;
  const auto load = [&](float (&x)[N], int slot) {
    const Int key = tile * TILE + slot - span.begin;
    if (key < 0) {
      load_row(x, open_tile + slot * Dt, Dt);
    } else {
      load_row(x, k + key * k_token, D);
      transform(x, Dt, hadamard_scale);
    }
  };

  // A thread sums its coordinates over the tokens, in the order of the tokens.
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
  Half* const written = means + b * means_batch + head * means_head + tile * Dt;
  for (int i = threadIdx.x; i < size; i += blockDim.x) {
    Half rounded;
    from_float(rounded, __fmul_rn(mean[i], 1.0f / TILE));
    if ((rounded.bits & 0x7c00u) == 0x7c00u) rounded.bits = 0;  // inf or NaN
    written[i] = rounded;
    mean[i] = to_float(rounded);
  }
  __syncthreads();

  planes += b * planes_batch + head * planes_head + tile * (TILE * words<N>());
  scales += b * scales_batch + head * scales_head + tile * TILE;
  for (int slot = warp; slot < TILE; slot += warps) {
    float x[N];
    load(x, slot);
    subtract(x, mean, size);
    write_centered(x, Dt, thresholds + head * thresholds_head, slot, planes, planes_plane, scales);
  }
}

// Grid: H_kv, B. A warp takes one token at a time, of the last 64 new tokens. It writes the
// transformed token to its row of open_tile. If the tile of the token is not full, the token is
// coded relative to the mean of the tile before, or to 0 in the first tile. That mean is also
// written as the mean of the open tile. This call does so if it brings the first token of that
// tile; else an earlier call did.
template <typename T, int N>
__global__ void __launch_bounds__(128) encode_last(
    const T* k, Int k_batch, Int k_head, Int k_token, const Int* spans, Int start, Int count,
    Word* planes, Int planes_plane, Int planes_batch, Int planes_head,
    Half* means, Int means_batch, Int means_head,
    unsigned char* scales, Int scales_batch, Int scales_head,
    float* open_tile, Int open_tile_batch, Int open_tile_head,
    const float* thresholds, Int thresholds_head, Int D, Int Dt, float hadamard_scale) {
  const Int head = blockIdx.x, b = blockIdx.y;
  const Span span = span_of(spans, b, gridDim.y, start, count);
  const int warp = threadIdx.x / LANES, warps = blockDim.x / LANES, size = Dt;
  const Int open = span.end / TILE;  // the tile that is not full; it may have no token
  const bool begins = span.begin <= open * TILE && open * TILE < span.end;
  means += b * means_batch + head * means_head + open * Dt;
  const Half* const before = begins ? (open > 0 ? means - Dt : nullptr) : means;
  if (begins) {
    for (int i = threadIdx.x; i < size; i += blockDim.x) means[i] = before ? before[i] : Half{0};
  }
  k += b * k_batch + head * k_head;
  open_tile += b * open_tile_batch + head * open_tile_head;
  planes += b * planes_batch + head * planes_head + open * (TILE * words<N>());
  scales += b * scales_batch + head * scales_head + open * TILE;
  for (Int token = max(span.begin, span.end - TILE) + warp; token < span.end; token += warps) {
    const int slot = token % TILE;
    float x[N];
    load_row(x, k + (token - span.begin) * k_token, D);
    transform(x, Dt, hadamard_scale);
#pragma unroll
    for (int j = 0; j < N; ++j) {
      const int i = lane_index() + LANES * j;
      if (i < size) open_tile[slot * size + i] = x[j];
    }
    if (token < open * TILE) continue;
    if (before) subtract(x, before, size);
    write_centered(x, Dt, thresholds + head * thresholds_head, slot, planes, planes_plane, scales);
  }
}
