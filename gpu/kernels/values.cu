// encode_values: codes of values, each relative to a base of its head. One warp per token.
//
// The time is that of the bytes of the values: each is read once.
//
// v (B, H_kv, S, D), where D is the head_dim of values. Where spans (2, B) is null, each sequence takes `count` values as its tokens
// start, start + 1, ...; else sequence b takes spans[1][b] values from token spans[0][b] on.
// codes (B, H_kv, T, 64, 2, P), scales (B, H_kv, T, 64) and bases (B, H_kv, 2, D) have strides in
// elements, and the part of one head is contiguous. `cut` is the outer threshold in units of a row's
// rms.
#include "values.cuh"

// Grid: blocks for the new tokens of a sequence, one token per warp; H_kv, B.
template <typename T, int N>
__global__ void __launch_bounds__(128) encode_values(
    const T* v, Int v_batch, Int v_head, Int v_token, const Int* spans, Int start, Int count,
    Word* codes, Int codes_batch, Int codes_head,
    unsigned char* scales, Int scales_batch, Int scales_head,
    const float* bases, Int bases_batch, Int bases_head, float cut, Int D, Int Dt,
    float hadamard_scale) {
  const Int head = blockIdx.y, b = blockIdx.z;
  const Span span = span_of(spans, b, gridDim.z, start, count);
  const Int i = warp_index();
  if (i >= span.end - span.begin) return;
  const ValueHead mine{
      codes + b * codes_batch + head * codes_head, scales + b * scales_batch + head * scales_head,
      bases + b * bases_batch + head * bases_head, cut, static_cast<int>(D), static_cast<int>(Dt),
      hadamard_scale};
  write_value<N>(v + b * v_batch + head * v_head + i * v_token, mine, span.begin + i);
}
