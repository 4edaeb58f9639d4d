// estimate: levels of estimated inner products of transformed queries and keys, from weighted
// distances.
//
// The time is that of the bytes. Per token and query head they are 2 of the distance and 2 of
// the level. The means have 2 Dt bytes per tile, and the G heads of a KV head read them at about
// the same time.
#include "warp_row.cuh"
#include "score.cuh"

// floor(estimate * levels_per_unit), clipped to int16; -32768 for NaN.
__device__ __forceinline__ short level_of(float estimate, float levels_per_unit) {
  const float level = floorf(__fmul_rn(estimate, levels_per_unit));
  return level >= -32768.0f ? static_cast<short>(fminf(level, 32767.0f)) : -32768;
}

// Grid: rows of x (B, H, L, Dt), chunks of `size` tokens. query (B, H, L, bits * P); distances and
// levels (B, H, L, S); the level of an invisible token has no meaning. For centered codes there are
// means (B, H_kv, T, Dt) and scales
// (B, H_kv, T, 64), and the part of one head is contiguous. For plain codes both are null, and the
// thresholds of a head, at thresholds + head * thresholds_head, give its scale. highest (B, H, L), 0
// before the launch, gets the highest level of the visible tokens plus LEVEL_BIAS.
template <int N>
__global__ void __launch_bounds__(128, N <= 16 ? 8 : 2) estimate(
    const float* x, const Word* query, Int bits, const unsigned short* distances, Int H, Int H_kv,
    Int L, Int S, Int size, Int Dt, const Half* means, Int means_batch, Int means_head,
    const unsigned char* scales, Int scales_batch, Int scales_head, const float* thresholds,
    Int thresholds_head, float levels_per_unit, short* levels, unsigned* highest) {
  const Int row = blockIdx.x;
  const Place at = place_of(row, H, L);
  const Int head = at.head / (H / H_kv);
  const int lane = lane_index(), warp = threadIdx.x / LANES, warps = blockDim.x / LANES;
  const int width = Dt;
  float v[N];
  load_row(v, x + row * Dt, Dt);
  // Half of the change of a coordinate that one step of its weight means.
  const float unit = __fdiv_rn(largest_of(v), static_cast<float>(2 * ((1 << (bits - 1)) - 1)));
  unsigned sum = 0;
  query += row * bits * words<N>();
  for (int b = 1; b < bits; ++b) {
    if (lane < words<N>()) sum += __popcll(query[b * words<N>() + lane]) << (bits - 1 - b);
  }
  const int weights = __reduce_add_sync(ALL_LANES, sum);
  thresholds += head * thresholds_head;
  float step = __fmul_rn(__fsub_rn(thresholds[2], thresholds[0]), 0.5f);
  const bool centered = means != nullptr;
  if (centered) {
    means += at.batch * means_batch + head * means_head;
    scales += at.batch * scales_batch + head * scales_head;
  }
  distances += row * S;
  levels += row * S;

  unsigned top = 0;
  const int first = blockIdx.y * size, end = min(first + size, S);
  for (int tile = first / TILE + warp; tile * TILE < end; tile += warps) {
    float on_mean = 0.0f;  // the inner product of x and the mean, for all tokens of the tile
    if (centered) {
      const Half* const mean = means + static_cast<Int>(tile) * width;
      on_mean = lane_sums<N>([&](int j) {
        const int i = lane + LANES * j;
        return i < width ? __fmul_rn(v[j], to_float(mean[i])) : 0.0f;
      });
    }
    for (int token = tile * TILE + lane; token < min((tile + 1) * TILE, end); token += LANES) {
      const int distance = distances[token];
      if (centered) step = scale_of(scales[token]);
      const float n = static_cast<float>(3 * weights - 2 * distance);  // exact, below 2^18
      float product = __fmul_rn(__fmul_rn(n, step), unit);
      if (centered) product = __fadd_rn(product, on_mean);
      const short level = level_of(product, levels_per_unit);
      levels[token] = level;
      if (distance != INVISIBLE) top = max(top, static_cast<unsigned>(level + LEVEL_BIAS));
    }
  }
  top = __reduce_max_sync(ALL_LANES, top);
  if (lane == 0) atomicMax(&highest[row], top);
}
