// append: put new keys and values after each sequence's tokens. The time is that of the launch.
#include "common.cuh"

// k_new and v_new (B, H_kv, S, D) become the tokens lengths[b], lengths[b] + 1, ... of k and v
// (B, H_kv, capacity, D). Strides are in elements; the last axis is contiguous. Tokens that do not
// fit are not written, because the host does not know the lengths. A thread copies one of the
// `elements` of k_new and of v_new.
template <typename T>
__global__ void append(
    const T* k_new, Int k_new_batch, Int k_new_head, Int k_new_token,
    const T* v_new, Int v_new_batch, Int v_new_head, Int v_new_token,
    T* k, Int k_batch, Int k_head, Int k_token, T* v, Int v_batch, Int v_head, Int v_token,
    const int* lengths, Int H_kv, Int S, Int D, Int elements, Int capacity) {
  const Int at = static_cast<Int>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (at >= elements) return;
  const Int d = at % D, s = at / D % S, h = at / D / S % H_kv, b = at / D / S / H_kv;
  const Int token = lengths[b] + s;
  if (token >= capacity) return;
  k[b * k_batch + h * k_head + token * k_token + d] =
      k_new[b * k_new_batch + h * k_new_head + s * k_new_token + d];
  v[b * v_batch + h * v_head + token * v_token + d] =
      v_new[b * v_new_batch + h * v_new_head + s * v_new_token + d];
}
