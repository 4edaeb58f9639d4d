// hadamard: the Walsh-Hadamard transform of rows of D coordinates. A warp transforms one row.
//
// The time is that of the bytes of x and y: the transform itself stays in registers.
#include "warp_row.cuh"

// x (batch, heads, tokens, D), strides in elements, the last axis contiguous; y (rows, Dt).
template <typename T, int N>
__global__ void hadamard(
    const T* x, Int x_batch, Int x_head, Int x_token, Int heads, Int tokens, Int rows,
    Int D, Int Dt, float hadamard_scale, float* y) {
  const Int row = warp_index();
  if (row >= rows) return;  // the whole warp leaves, so no shuffle misses a lane
  const Place at = place_of(row, heads, tokens);
  float v[N];
  load_row(v, x + at.batch * x_batch + at.head * x_head + at.token * x_token, D);
  transform(v, Dt, hadamard_scale);
#pragma unroll
  for (int j = 0; j < N; ++j) {
    const int i = lane_index() + LANES * j;
    if (i < Dt) y[row * Dt + i] = v[j];
  }
}
