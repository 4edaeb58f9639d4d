// Codes of keys relative to the mean of their tile, and one scale byte per token.
#pragma once
#include "warp_row.cuh"

// The new tokens of a sequence: begin to end - 1.
struct Span {
  Int begin, end;
};

// The span of sequence b: `count` tokens from `start` on where spans (2, B) is null; else spans[1][b]
// tokens from spans[0][b] on.
__device__ __forceinline__ Span span_of(const Int* spans, Int b, Int B, Int start, Int count) {
  const Int begin = spans ? spans[b] : start;
  return {begin, begin + (spans ? spans[B + b] : count)};
}

// Codes, centers and new keys of one KV head of a sequence. Key i is token span.begin + i.
template <typename T>
struct CenteredHead {
  const T* k;
  Int k_token;
  Word* planes;  // (T, 8, P, 8); the low plane begins planes_plane words after the high plane
  Int planes_plane;
  Half* means;            // (T, Dt)
  unsigned char* scales;  // (T, 64)
  Word* bits;             // (T, 64, P), or null: no third bits
  unsigned char* finer;   // (T, 64): the scales of three bits
  float* open_tile;       // (64, Dt)
  const float* thresholds;
  int D, Dt;
  float hadamard_scale;
};

// The byte of the nearest scale; 0 for a scale that is not positive, or NaN.
__device__ __forceinline__ unsigned char scale_byte(float scale) {
  const int bits = scale > 0.0f ? __float_as_int(scale) : 0;
  const int rounded = (bits + (1 << (SCALE_SHIFT - 1))) >> SCALE_SHIFT;  // inf stays below 2^31
  return static_cast<unsigned char>(min(max(rounded - SCALE_LEAST, 0), 255));
}

// Subtracts a mean from a row.
template <int N, typename M>
__device__ __forceinline__ void subtract(float (&x)[N], const M* mean, int size) {
#pragma unroll
  for (int j = 0; j < N; ++j) {
    const int i = lane_index() + LANES * j;
    if (i < size) x[j] = __fsub_rn(x[j], to_float(mean[i]));
  }
}

// How a row was cut: its thresholds, its scale, and the sum of its squares.
struct Cut {
  float own[3], scale, square;
};

// The cut of a row of Dt coordinates, from thresholds in units of its rms. The scale is
// |x|^2 / (x.u), with u = code - 1.5.
template <int N>
__device__ __forceinline__ Cut cut_of(const float (&x)[N], int Dt, float t0, float t1, float t2) {
  const float square = lane_sums<N>([&](int j) { return __fmul_rn(x[j], x[j]); });
  const float rms = __fsqrt_rn(__fdiv_rn(square, static_cast<float>(Dt)));
  Cut cut{{__fmul_rn(t0, rms), __fmul_rn(t1, rms), __fmul_rn(t2, rms)}, 0.0f, square};
  const float along = lane_sums<N>([&](int j) {
    return __fmul_rn(x[j], static_cast<float>(code_of(x[j], cut.own)) - 1.5f);
  });
  cut.scale = __fdiv_rn(square, along);
  return cut;
}

// Writes the third bits of one token and their scale. `own` are its thresholds, s its scale and
// `square` the sum of the squares of its row.
//
// A third bit is 1 where the rest is larger than s u, with u = code - 1.5. Then the code stands for
// u + 1/4, else for u - 1/4, times the scale of three bits.
template <int N, typename T>
__device__ __forceinline__ void write_third(
    const float (&rest)[N], const CenteredHead<T>& head, Int token, const float (&own)[3], float s,
    float square) {
  const auto level = [&](int j) { return static_cast<float>(code_of(rest[j], own)) - 1.5f; };
  const auto above = [&](int j) { return rest[j] > __fmul_rn(s, level(j)); };
  const Word third = pack<N>(head.Dt, above);
  if (lane_index() < words<N>()) head.bits[token * words<N>() + lane_index()] = third;
  const float along = lane_sums<N>([&](int j) {
    return __fmul_rn(rest[j], level(j) + (above(j) ? 0.25f : -0.25f));
  });
  if (lane_index() == 0) head.finer[token] = scale_byte(__fdiv_rn(square, along));
}

// write_third as a function of its own, whose row is in memory. Inlined above Dt = 1024 it would spill
// registers.
template <int N, typename T>
__device__ __noinline__ void write_third_apart(
    const float (&rest)[N], const CenteredHead<T>& head, Int token, const float (&own)[3], float s,
    float square) {
  write_third<N>(rest, head, token, own, s, square);
}

// Writes the codes and the scale of one token, from its row minus the mean, and with FINE its third
// bits where there are any.
template <bool FINE, int N, typename T>
__device__ __forceinline__ void write_centered(
    const float (&rest)[N], const CenteredHead<T>& head, Int token) {
  const float* const t = head.thresholds;
  const Cut cut = cut_of(rest, head.Dt, t[0], t[1], t[2]);
  Word* const high = head.planes + token / 8 * (8 * words<N>()) + token % 8;
  write_codes(rest, head.Dt, cut.own, high, high + head.planes_plane, 8);
  if (lane_index() == 0) head.scales[token] = scale_byte(cut.scale);
  if (!FINE || !head.bits) return;
  if constexpr (N <= 32) {
    write_third<N>(rest, head, token, cut.own, cut.scale, cut.square);
  } else {
    float kept[N];
#pragma unroll
    for (int j = 0; j < N; ++j) kept[j] = rest[j];
    write_third_apart<N>(kept, head, token, cut.own, cut.scale, cut.square);
  }
}

// Codes a tile that is full after the last new token, by the whole block. Tokens of the tile from
// earlier calls come from open_tile. `rows` has room for a transformed row per warp, and for the
// mean.
template <int N, bool FINE = true, typename T>
__device__ __forceinline__ void encode_full_tile(
    const CenteredHead<T>& head, Span span, Int tile, float* rows) {
  const int Dt = head.Dt;
  const int warp = threadIdx.x / LANES, warps = blockDim.x / LANES, size = Dt;
  float* const mean = rows + warps * size;
  const auto load = [&](float (&x)[N], int slot) {
    const Int key = tile * TILE + slot - span.begin;
    if (key < 0) {
      load_row(x, head.open_tile + slot * Dt, Dt);
    } else {
      load_row(x, head.k + key * head.k_token, head.D);
      transform(x, Dt, head.hadamard_scale);
    }
  };

  // A thread sums its coordinates over the tokens, in the order of the tokens.
  for (int i = threadIdx.x; i < size; i += blockDim.x) mean[i] = 0.0f;
  for (int first = 0; first < TILE; first += warps) {
    float x[N];
    load(x, first + warp);
    store_row(x, rows + warp * size, size);
    __syncthreads();
    for (int i = threadIdx.x; i < size; i += blockDim.x) {
      float sum = mean[i];
      for (int w = 0; w < warps; ++w) sum = __fadd_rn(sum, rows[w * size + i]);
      mean[i] = sum;
    }
    __syncthreads();
  }
  Half* const written = head.means + tile * Dt;
  for (int i = threadIdx.x; i < size; i += blockDim.x) {
    Half rounded;
    from_float(rounded, __fmul_rn(mean[i], 1.0f / TILE));
    if ((rounded.bits & 0x7c00u) == 0x7c00u) rounded.bits = 0;  // inf or NaN
    written[i] = rounded;
    mean[i] = to_float(rounded);
  }
  __syncthreads();

  for (int slot = warp; slot < TILE; slot += warps) {
    float x[N];
    load(x, slot);
    subtract(x, mean, size);
    write_centered<FINE>(x, head, tile * TILE + slot);
  }
}

// Codes the tokens after the last full tile, by the whole block. A warp takes one token at a time,
// of the last 64 new tokens. It writes the transformed token to its row of open_tile. If the tile
// of the token is not full, the token is coded relative to the mean of the tile before, or to 0 in
// the first tile. That mean is also written as the mean of the open tile. This call does so if it
// brings the first token of that tile; else an earlier call did.
template <int N, bool FINE = true, typename T>
__device__ __forceinline__ void encode_open_tile(const CenteredHead<T>& head, Span span) {
  const int Dt = head.Dt;
  const int warp = threadIdx.x / LANES, warps = blockDim.x / LANES, size = Dt;
  const Int open = span.end / TILE;  // the tile that is not full; it may have no token
  const bool begins = span.begin <= open * TILE && open * TILE < span.end;
  Half* const means = head.means + open * Dt;
  const Half* const before = begins ? (open > 0 ? means - Dt : nullptr) : means;
  if (begins) {
    for (int i = threadIdx.x; i < size; i += blockDim.x) means[i] = before ? before[i] : Half{0};
  }
  for (Int token = max(span.begin, span.end - TILE) + warp; token < span.end; token += warps) {
    const int slot = token % TILE;
    float x[N];
    load_row(x, head.k + (token - span.begin) * head.k_token, head.D);
    transform(x, Dt, head.hadamard_scale);
    store_row(x, head.open_tile + slot * size, size);
    if (token < open * TILE) continue;
    if (before) subtract(x, before, size);
    write_centered<FINE>(x, head, token);
  }
}
