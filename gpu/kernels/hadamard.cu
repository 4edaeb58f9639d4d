// The Walsh-Hadamard transform of rows of head_dim coordinates, a warp a row. Bound by the bytes of
// x and y; the transform itself never leaves the registers.
#include "rows.cuh"

// x (batch, heads, tokens, D) at any leading strides, in elements; y (rows, Dt) contiguous.
template <typename T, int N>
__global__ void hadamard(
    const T* x, Int x_batch, Int x_head, Int x_token, Int heads, Int tokens, Int rows,
    Int D, Int Dt, float scale, float* y) {
  const Int row = warp_index();
  if (row >= rows) return;  // a whole warp leaves, so none is missed in a shuffle
  const Place at = place_of(row, heads, tokens);
  float v[N];
  load_row(v, x + at.batch * x_batch + at.head * x_head + at.token * x_token, D);
  transform(v, Dt, scale);
#pragma unroll
  for (int j = 0; j < N; ++j) {
    const int i = lane_index() + LANES * j;
    if (i < Dt) y[row * Dt + i] = v[j];
  }
}
