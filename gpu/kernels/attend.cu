// attend: softmax attention of each query over its chosen tokens, or over all tokens that it sees.
//
// The time is the latency of scattered rows: K rows of k and of v per query, read once, with
// several loads of each in flight per lane. One row of the work is one query of one head. Where the
// rows alone would not fill the GPU, the tokens of a row are split over several blocks, and the
// block that finishes last merges their partial sums.

#include "attend.cuh"

// One row in float64, by the whole block: for results that float32 cannot hold. Then a result is
// NaN or infinite exactly where it is so in the reference, which sums in float64.
template <bool GENERAL, typename TQ, typename TK>
__device__ void attend_in_double(
    const TQ* q, Strided<TK> k, Strided<TK> v, int b, int head, Tokens tokens, int D, int Dv,
    Logits rule, float sink, double* sums, TQ* out, float* lse) {
  __shared__ double logits[ATTEND_THREADS];
  __shared__ double tops[ATTEND_WARPS];
  const int lane = threadIdx.x % LANES, warp = threadIdx.x / LANES;
  auto logit = [&](int token) {
    const TK* key = k.row(b, head, token);
    double dot = 0;
    for (int d = lane; d < D; d += LANES) {
      dot += static_cast<double>(to_float(q[d])) * to_float(key[d]);
    }
    for (int stride = LANES / 2; stride > 0; stride /= 2) {
      dot += __shfl_xor_sync(ALL_LANES, dot, stride);
    }
    dot *= rule.scale;
    if constexpr (GENERAL) {
      if (rule.soft_cap > 0) dot = rule.soft_cap * tanh(dot / rule.soft_cap);
    }
    return dot;
  };
  auto larger = [](double x, double y) { return x > y || x != x ? x : y; };  // NaN wins

  double top = sink;
  for (int i = warp; i < tokens.count; i += ATTEND_WARPS) {
    const int token = tokens(i);
    if (token >= 0) top = larger(logit(token), top);
  }
  if (lane == 0) tops[warp] = top;
  for (int d = threadIdx.x; d < Dv; d += ATTEND_THREADS) sums[d] = 0;
  __syncthreads();
  top = sink;
  for (int w = 0; w < ATTEND_WARPS; ++w) top = larger(tops[w], top);

  double mass = sink > no_token() ? exp(sink - top) : 0;
  for (int start = 0; start < tokens.count; start += ATTEND_THREADS) {
    const int n = min(ATTEND_THREADS, tokens.count - start);
    for (int i = warp; i < n; i += ATTEND_WARPS) {
      const int token = tokens(start + i);
      const double p = token >= 0 ? exp(logit(token) - top) : 0;
      if (lane == 0) logits[i] = p;
    }
    __syncthreads();
    for (int i = 0; i < n; ++i) mass += logits[i];
    for (int d = threadIdx.x; d < Dv; d += ATTEND_THREADS) {
      for (int i = 0; i < n; ++i) {
        const int token = tokens(start + i);
        if (token >= 0) sums[d] += logits[i] * to_float(v.row(b, head, token)[d]);
      }
    }
    __syncthreads();
  }
  for (int d = threadIdx.x; d < Dv; d += ATTEND_THREADS) {
    from_float(out[d], static_cast<float>(sums[d] / mass));
  }
  if (threadIdx.x == 0) *lse = static_cast<float>(top + log(mass));
}

// Grid: rows of q (B, H, L, D), splits of a row's tokens. k (B, H_kv, S, D) and v (B, H_kv, S, Dv), with
// D and Dv <= DT. indices (B, H, L, K). K is -1 for dense attention, where the queries are the last L
// of S tokens and each sees the last `window` tokens up to itself. (Null would not tell: an empty array
// has no address.) With VEC > 1 every row of k and v is aligned to VEC elements, and VEC divides D and
// Dv. A soft_cap of 0 means none. Without GENERAL there is none, and Dv is D. sink_logits (H,) or null.
// out (B, H, L, Dv), lse (B, H, L). With several splits, `partial` (rows, splits, Dv + 2) holds their
// sums, and `finished` (rows,) is 0 before and after the launch.
template <typename TQ, typename TK, int DT, int VEC, bool GENERAL = false>
__global__ void __launch_bounds__(ATTEND_THREADS, 1) attend(
    const TQ* q, Int q_batch, Int q_head, Int q_token,
    const TK* k, Int k_batch, Int k_head, Int k_token,
    const TK* v, Int v_batch, Int v_head, Int v_token,
    const int* indices, Int H, Int H_kv, Int L, Int S, Int window, Int K, Int D, Int Dv, float scale,
    float soft_cap, const float* sink_logits, TQ* out, float* lse, float* partial, unsigned* finished,
    unsigned* beyond) {
  __shared__ float shared_query[EARLY<DT, VEC> ? 1 : DT];
  __shared__ double shared_sums[ATTEND_WARPS * DT / 2];  // float (ATTEND_WARPS, DT), or double (DT)
  __shared__ float tops[ATTEND_WARPS], masses[ATTEND_WARPS];
  __shared__ int last, not_finite;
  float* sums = reinterpret_cast<float*>(shared_sums);

  const Position at = position<DT, VEC>();
  const Int row = blockIdx.x;
  const int l = row % L, h = row / L % H, b = row / (L * H);
  const int head = h / (H / H_kv);
  const bool dense = K < 0;
  const int visible = visible_tokens(S, l, L);
  // Without keys there is no row that a load could take in place of a missing one.
  const int count = S == 0 ? 0 : dense ? min(visible, static_cast<int>(window)) : K;
  const Tokens tokens{
      indices + (dense ? 0 : row * K), dense, count, visible - count, static_cast<int>(S)};
  const int splits = gridDim.y;
  const int size = (count + splits - 1) / splits;
  const int begin = min(static_cast<int>(blockIdx.y) * size, count), end = min(begin + size, count);

  const Strided<TK> keys{k, k_batch, k_head, k_token}, values{v, v_batch, v_head, v_token};
  const TQ* const q_row = q + b * q_batch + h * q_head + l * q_token;
  const WarpSums<DT> warps{sums, tops, masses};
  const Logits rule{scale, soft_cap};
  const int width = GENERAL ? Dv : D;  // of a value
  attend_tokens<TQ, TK, DT, VEC, GENERAL>(
      at, q_row, keys, values, b, head, tokens, begin, end, D, Dv, rule, true, shared_query,
      warps, beyond);
  if (threadIdx.x == 0) not_finite = 0;
  __syncthreads();

  // Merge the warps into the sums of the row, or of this split of it.
  float row_top = warps.top(), row_mass = warps.mass(row_top);

  // With several splits, each writes its sums, its top and its mass, and the last block merges
  // them.
  float* parts = partial + row * splits * (width + 2);
  if (splits > 1) {
    float* part = parts + blockIdx.y * (width + 2);
    for (int d = threadIdx.x; d < width; d += ATTEND_THREADS) part[d] = warps.sum(d, row_top);
    if (threadIdx.x == 0) {
      part[width] = row_top;
      part[width + 1] = row_mass;
    }
    __threadfence();  // other blocks see the parts before the count
    __syncthreads();
    if (threadIdx.x == 0) last = atomicAdd(&finished[row], 1u) == splits - 1u;
    __syncthreads();
    if (!last) return;
    __threadfence();
    if (threadIdx.x == 0) finished[row] = 0;
    row_top = no_token(), row_mass = 0;
    for (int i = 0; i < splits; ++i) {
      row_top = fmaxf(row_top, __ldcg(parts + i * (width + 2) + width));
    }
    for (int i = 0; i < splits; ++i) {
      const float* other = parts + i * (width + 2);
      row_mass += share(__ldcg(other + width), row_top) * __ldcg(other + width + 1);
    }
  }
  // The sink counts once per row, so after the splits.
  const float sink = sink_of(sink_logits, h);
  if (sink > no_token()) {
    const float larger = fmaxf(row_top, sink);
    row_mass = share(row_top, larger) * row_mass + share(sink, larger);
    row_top = larger;
  }
  for (int d = threadIdx.x; d < width; d += ATTEND_THREADS) {
    float total = 0;
    if (splits == 1) {
      total = warps.sum(d, row_top);
    } else {
      for (int i = 0; i < splits; ++i) {
        const float* other = parts + i * (width + 2);
        total += share(__ldcg(other + width), row_top) * __ldcg(other + d);
      }
    }
    // The largest logit adds exp(0) = 1, so the mass is 0 only where there is no token and no sink.
    const float x = row_mass == 0 ? 0.0f : total / row_mass;
    if (!is_finite(x)) not_finite = 1;
    from_float(out[row * width + d], x);
  }
  if (threadIdx.x == 0) {
    lse[row] = row_top + logf(row_mass);
    if (row_mass != 0 && !is_finite(lse[row])) not_finite = 1;
  }
  __syncthreads();
  if (not_finite) {
    attend_in_double<GENERAL>(
        q_row, keys, values, b, head, tokens, D, width, rule, sink, shared_sums, out + row * width,
        lse + row);
  }
}
