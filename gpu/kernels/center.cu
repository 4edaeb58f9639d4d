// encode_full, encode_last: codes of keys relative to the mean of their tile, and one scale byte per
// token.
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
// Third bits (B, H_kv, T, 64, P) and their scales, `finer` (B, H_kv, T, 64), are written unless null.
// The thresholds of a head start at thresholds + head * thresholds_head.
#include "center.cuh"

// Grid: tiles from the tile of a sequence's first new token on, H_kv, B. A block returns if its
// tile is not full after the last new token. Dynamic shared memory: a transformed row per warp, and
// the mean.
template <typename T, int N>
__global__ void __launch_bounds__(128) encode_full(
    const T* k, Int k_batch, Int k_head, Int k_token, const Int* spans, Int start, Int count,
    Word* planes, Int planes_plane, Int planes_batch, Int planes_head,
    Half* means, Int means_batch, Int means_head,
    unsigned char* scales, Int scales_batch, Int scales_head,
    float* open_tile, Int open_tile_batch, Int open_tile_head,
    Word* bits, Int bits_batch, Int bits_head,
    unsigned char* finer, Int finer_batch, Int finer_head,
    const float* thresholds, Int thresholds_head, Int D, Int Dt, float hadamard_scale) {
  DYN_SHARED(float, rows);
  const Int head = blockIdx.y, b = blockIdx.z;
  const Span span = span_of(spans, b, gridDim.z, start, count);
  const Int tile = span.begin / TILE + blockIdx.x;
  if (tile >= span.end / TILE) return;
  const CenteredHead<T> mine{
      k + b * k_batch + head * k_head, k_token,
      planes + b * planes_batch + head * planes_head, planes_plane,
      means + b * means_batch + head * means_head,
      scales + b * scales_batch + head * scales_head,
      bits ? bits + b * bits_batch + head * bits_head : nullptr,
      finer + b * finer_batch + head * finer_head,
      open_tile + b * open_tile_batch + head * open_tile_head,
      thresholds + head * thresholds_head, D, Dt, hadamard_scale};
  encode_full_tile<N>(mine, span, tile, rows);
}

// Grid: H_kv, B.
template <typename T, int N>
__global__ void __launch_bounds__(128) encode_last(
    const T* k, Int k_batch, Int k_head, Int k_token, const Int* spans, Int start, Int count,
    Word* planes, Int planes_plane, Int planes_batch, Int planes_head,
    Half* means, Int means_batch, Int means_head,
    unsigned char* scales, Int scales_batch, Int scales_head,
    float* open_tile, Int open_tile_batch, Int open_tile_head,
    Word* bits, Int bits_batch, Int bits_head,
    unsigned char* finer, Int finer_batch, Int finer_head,
    const float* thresholds, Int thresholds_head, Int D, Int Dt, float hadamard_scale) {
  const Int head = blockIdx.x, b = blockIdx.y;
  const Span span = span_of(spans, b, gridDim.y, start, count);
  const CenteredHead<T> mine{
      k + b * k_batch + head * k_head, k_token,
      planes + b * planes_batch + head * planes_head, planes_plane,
      means + b * means_batch + head * means_head,
      scales + b * scales_batch + head * scales_head,
      bits ? bits + b * bits_batch + head * bits_head : nullptr,
      finer + b * finer_batch + head * finer_head,
      open_tile + b * open_tile_batch + head * open_tile_head,
      thresholds + head * thresholds_head, D, Dt, hadamard_scale};
  encode_open_tile<N>(mine, span);
}
