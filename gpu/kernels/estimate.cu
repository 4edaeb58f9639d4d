// estimate: from weighted distances to estimated inner products of transformed queries and keys.
//
// Bound by bytes: of a token and query head 2 of the distance and 2 or 4 of the result, beside 2 Dt
// a tile of the means, which the G heads of a KV head read one beside the other.
#include "rows.cuh"
#include "score.cuh"

// What an estimate becomes: for topk.cu a number that ascends as it falls, NaN being the least.
__device__ __forceinline__ void result_of(unsigned& result, float estimate, bool seen, float) {
  result = seen ? rank_of(__fadd_rn(estimate, 0.0f)) : 0xffffffffu;  // -0 becomes 0
}

// For group.cu its level, the logit in units of which `unit` are one of q.k, as int16 holds it; of a
// token that is not seen any.
__device__ __forceinline__ void result_of(short& result, float estimate, bool, float unit) {
  const float level = floorf(__fmul_rn(estimate, unit));
  result = level >= -32768.0f ? static_cast<short>(fminf(level, 32767.0f)) : -32768;
}

// Grid: rows of x (B, H, L, Dt), chunks of `size` tokens. query (B, H, L, bits * P); distances and
// results (B, H, L, S). Where codes are centered means (B, H_kv, T, Dt) and scales (B, H_kv, T, 64)
// with the strides of their leading axes, a head's own part contiguous; else both are null and
// the thresholds of a head, at thresholds + head * t_head, give its scale.
template <int N, typename Result>
__global__ void __launch_bounds__(128, N <= 16 ? 8 : 2) estimate(
    const float* x, const Word* query, Int bits, const unsigned short* distances, Int H, Int H_kv,
    Int L, Int S, Int size, Int Dt, const Half* means, Int m_batch, Int m_head,
    const unsigned char* scales, Int s_batch, Int s_head, const float* thresholds, Int t_head,
    float unit_of_level, Result* results) {
  const Int row = blockIdx.x;
  const Place at = place_of(row, H, L);
  const Int head = at.head / (H / H_kv);
  const int lane = lane_index(), warp = threadIdx.x / LANES, warps = blockDim.x / LANES;
  const int width = Dt;
  float v[N];
  load_row(v, x + row * Dt, Dt);
  // Half of what one step of a coordinate's weight stands for.
  const float unit = __fdiv_rn(largest_of(v), static_cast<float>(2 * ((1 << (bits - 1)) - 1)));
  unsigned sum = 0;
  query += row * bits * words<N>();
  for (int b = 1; b < bits; ++b) {
    if (lane < words<N>()) sum += __popcll(query[b * words<N>() + lane]) << (bits - 1 - b);
  }
  const int weights = __reduce_add_sync(ALL_LANES, sum);
  thresholds += head * t_head;
  float step = __fmul_rn(__fsub_rn(thresholds[2], thresholds[0]), 0.5f);
  const bool centered = means != nullptr;
  if (centered) {
    means += at.batch * m_batch + head * m_head;
    scales += at.batch * s_batch + head * s_head;
  }
  distances += row * S;
  results += row * S;

  const int first = blockIdx.y * size, end = min(first + size, S);
  for (int tile = first / TILE + warp; tile * TILE < end; tile += warps) {
    float shared = 0.0f;  // the part of the product that the tile's tokens share
    if (centered) {
      const Half* const mean = means + static_cast<Int>(tile) * width;
      shared = lane_sums<N>([&](int j) {
        const int i = lane + LANES * j;
        return i < width ? __fmul_rn(v[j], to_float(mean[i])) : 0.0f;
      });
    }
    for (int token = tile * TILE + lane; token < min((tile + 1) * TILE, end); token += LANES) {
      const int distance = distances[token];
      if (centered) step = __uint_as_float((scales[token] + SCALE_LEAST) << SCALE_SHIFT);
      const float n = static_cast<float>(3 * weights - 2 * distance);  // exact, below 2^18
      float product = __fmul_rn(__fmul_rn(n, step), unit);
      if (centered) product = __fadd_rn(product, shared);
      result_of(results[token], product, distance != INVISIBLE, unit_of_level);
    }
  }
}
