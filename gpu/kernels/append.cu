// New keys and values put behind each sequence's tokens. Bound by the launch.
#include "common.cuh"

// k_new and v_new (B, H_kv, S, D), at any leading strides, become tokens lengths[b] + s of k and v,
// which have capacity tokens and strides of their own, all in elements. Tokens that do not fit are
// not written: the host does not know lengths.
template <typename T>
__global__ void append(
    const T* k_new, Int k_new_b, Int k_new_h, Int k_new_s, const T* v_new, Int v_new_b, Int v_new_h,
    Int v_new_s, T* k, Int k_b, Int k_h, Int k_s, T* v, Int v_b, Int v_h, Int v_s, const int* lengths,
    Int H_kv, Int S, Int D, Int elements, Int capacity) {
  const Int at = static_cast<Int>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (at >= elements) return;
  const Int d = at % D, s = at / D % S, h = at / D / S % H_kv, b = at / D / S / H_kv;
  const Int token = lengths[b] + s;
  if (token >= capacity) return;
  k[b * k_b + h * k_h + token * k_s + d] = k_new[b * k_new_b + h * k_new_h + s * k_new_s + d];
  v[b * v_b + h * v_h + token * v_s + d] = v_new[b * v_new_b + h * v_new_h + s * v_new_s + d];
}
