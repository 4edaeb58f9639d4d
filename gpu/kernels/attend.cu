// attend: softmax attention of each query over its chosen tokens, or over all tokens that it sees.
//
// The time is the latency of scattered rows: K rows of k and of v per query, read once, with
// several loads of each in flight per lane. One row of the work is one query of one head. Where the
// rows alone would not fill the GPU, the tokens of a row are split over several blocks, and the
// block that finishes last merges their partial sums.

#include "score.cuh"

constexpr int ATTEND_THREADS = 128;
constexpr int ATTEND_WARPS = ATTEND_THREADS / LANES;

// -inf: the largest logit where there is no token.
__device__ __forceinline__ float no_token() { return __uint_as_float(0xFF800000); }

// The tokens of one query: those of `indices`, or `count` from `first` on if attention is dense. An
// index below 0 means no token. An index of S or more counts as none, so that nothing outside k and
// v is read. A branch in here would keep the compiler from loading several indices at a time.
struct Tokens {
  const int* indices;
  bool dense;
  int count, first, S;

  __device__ int named(int i) const {
    int token = -1;
    if (i < count) token = dense ? first + i : indices[i];
    return token;
  }

  __device__ int operator()(int i) const {
    const int token = named(i);
    return token < S ? token : -1;
  }
};

__device__ __forceinline__ bool is_finite(float x) { return x - x == 0; }

// exp(x - top), where `top` is the largest of several x. If there is no token, both are -inf.
__device__ __forceinline__ float share(float x, float top) {
  return x == top ? 1.0f : expf(x - top);
}

// One row in float64, by the whole block: for results that float32 cannot hold. Then a result is
// NaN or infinite exactly where it is so in the reference, which sums in float64.
template <int DT, typename TQ, typename TK>
__device__ void attend_in_double(
    const TQ* q, Strided<TK> k, Strided<TK> v, int b, int head, Tokens tokens, int D, float scale,
    double* sums, TQ* out, float* lse) {
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
    return scale * dot;
  };
  auto larger = [](double x, double y) { return x > y || x != x ? x : y; };  // NaN wins

  double top = no_token();
  for (int i = warp; i < tokens.count; i += ATTEND_WARPS) {
    const int token = tokens(i);
    if (token >= 0) top = larger(logit(token), top);
  }
  if (lane == 0) tops[warp] = top;
  for (int d = threadIdx.x; d < D; d += ATTEND_THREADS) sums[d] = 0;
  __syncthreads();
  top = no_token();
  for (int w = 0; w < ATTEND_WARPS; ++w) top = larger(tops[w], top);

  double mass = 0;
  for (int start = 0; start < tokens.count; start += ATTEND_THREADS) {
    const int n = min(ATTEND_THREADS, tokens.count - start);
    for (int i = warp; i < n; i += ATTEND_WARPS) {
      const int token = tokens(start + i);
      const double p = token >= 0 ? exp(logit(token) - top) : 0;
      if (lane == 0) logits[i] = p;
    }
    __syncthreads();
    for (int i = 0; i < n; ++i) mass += logits[i];
    for (int d = threadIdx.x; d < D; d += ATTEND_THREADS) {
      for (int i = 0; i < n; ++i) {
        const int token = tokens(start + i);
        if (token >= 0) sums[d] += logits[i] * to_float(v.row(b, head, token)[d]);
      }
    }
    __syncthreads();
  }
  for (int d = threadIdx.x; d < D; d += ATTEND_THREADS) {
    from_float(out[d], static_cast<float>(sums[d] / mass));
  }
  if (threadIdx.x == 0) *lse = static_cast<float>(top + log(mass));
}

// Grid: rows of q (B, H, L, D), splits of a row's tokens. k and v (B, H_kv, S, D). indices
// (B, H, L, K). K is -1 for dense attention, where the queries are the last L of S tokens and each sees
// the last `window` tokens up to itself. (Null would not tell: an empty array has no address.) D <= DT.
// With VEC > 1 every row of k and v is aligned to VEC elements and VEC divides D. out (B, H, L, D),
// lse (B, H, L). With several splits, `partial` (rows, splits, D + 2) holds their sums, and
// `finished` (rows,) is 0 before and after the launch.
template <typename TQ, typename TK, int DT, int VEC>
__global__ void __launch_bounds__(ATTEND_THREADS, 1) attend(
    const TQ* q, Int q_batch, Int q_head, Int q_token,
    const TK* k, Int k_batch, Int k_head, Int k_token,
    const TK* v, Int v_batch, Int v_head, Int v_token,
    const int* indices, Int H, Int H_kv, Int L, Int S, Int window, Int K, Int D, float scale,
    TQ* out, float* lse, float* partial, unsigned* finished, unsigned* beyond) {
  constexpr int SHARERS = DT / VEC < LANES ? DT / VEC : LANES;  // lanes that share a token: a team
  constexpr int PER = DT / (VEC * SHARERS);                     // vectors per lane
  constexpr int TEAMS = ATTEND_THREADS / SHARERS;               // tokens per block at a time
  constexpr int AHEAD = PER < 4 ? 4 / PER : 1;                  // tokens per team at a time
  // Up to Dt = 1024 the registers hold the query, a key and its value together. Above, the query
  // stays in shared memory, where each thread writes its own part, and a value is loaded after its
  // key has been used.
  constexpr bool EARLY = PER * VEC < 64;
  __shared__ float shared_query[EARLY ? 1 : DT];
  __shared__ double shared_sums[ATTEND_WARPS * DT / 2];  // float (ATTEND_WARPS, DT), or double (DT)
  __shared__ float tops[ATTEND_WARPS], masses[ATTEND_WARPS];
  __shared__ int last, not_finite;
  float* sums = reinterpret_cast<float*>(shared_sums);
  const int lane = threadIdx.x % SHARERS, team = threadIdx.x / SHARERS, warp = threadIdx.x / LANES;

  const Int row = blockIdx.x;
  const int l = row % L, h = row / L % H, b = row / (L * H);
  const int head = h / (H / H_kv);
  const bool dense = K < 0;
  const int visible = visible_tokens(S, l, L);
  // Without keys there is no row that a load could take in place of a missing one.
  const int count = S == 0 ? 0 : dense ? min(visible, static_cast<int>(window)) : K;
  const Tokens tokens{
      indices + (dense ? 0 : row * K), dense, count, visible - count, static_cast<int>(S)};
  int largest = -1;  // index that this thread has met
  const int splits = gridDim.y;
  const int size = (count + splits - 1) / splits;
  const int begin = min(static_cast<int>(blockIdx.y) * size, count), end = min(begin + size, count);

  const Strided<TK> keys{k, k_batch, k_head, k_token}, values{v, v_batch, v_head, v_token};
  const TQ* const q_row = q + b * q_batch + h * q_head + l * q_token;
  float query[EARLY ? PER : 1][VEC], sum[PER][VEC];
#pragma unroll
  for (int i = 0; i < PER; ++i) {
#pragma unroll
    for (int j = 0; j < VEC; ++j) {
      const int d = (i * SHARERS + lane) * VEC + j;
      float& mine = EARLY ? query[EARLY ? i : 0][j] : shared_query[EARLY ? 0 : d];
      mine = d < D ? to_float(q_row[d]) : 0.0f;
      sum[i][j] = 0;
    }
  }

  // Online softmax: `top` is the largest logit so far, mass = sum of exp(logit - top) and
  // sum = sum of exp(logit - top) v.
  float top = no_token(), mass = 0;
  using Part = Packed<TK, VEC>;
  // Without a branch a missing token takes the row of token 0, and its parts become 0 after the load.
  // Above Dt = 1024 that would need more registers than there are.
  const auto load = [&](const Strided<TK>& rows, int token, Part (&parts)[PER]) {
    const TK* const from = rows.row(b, head, max(token, 0));
#pragma unroll
    for (int i = 0; i < PER; ++i) {
      const int d = (i * SHARERS + lane) * VEC;
      const bool there = token >= 0 && d < D;
      if (EARLY || there) parts[i] = *reinterpret_cast<const Part*>(from + (d < D ? d : 0));
      if (!there) parts[i] = Part{};
    }
  };
  for (int start = begin; start < end; start += TEAMS * AHEAD) {
    Part key[AHEAD][PER], value[AHEAD][PER];
    int token[AHEAD];
#pragma unroll
    for (int a = 0; a < AHEAD; ++a) {
      const int at = start + a * TEAMS + team;
      const int named = at < end ? tokens.named(at) : -1;
      largest = max(largest, named);
      token[a] = named < tokens.S ? named : -1;
    }
#pragma unroll
    for (int a = 0; a < AHEAD; ++a) {
      load(keys, token[a], key[a]);
      if (EARLY) load(values, token[a], value[a]);
    }
    float logit[AHEAD];
    float larger = top;
#pragma unroll
    for (int a = 0; a < AHEAD; ++a) {
      float dot = 0;
#pragma unroll
      for (int i = 0; i < PER; ++i) {
#pragma unroll
        for (int j = 0; j < VEC; ++j) {
          const float x = EARLY ? query[EARLY ? i : 0][j]
                                : shared_query[EARLY ? 0 : (i * SHARERS + lane) * VEC + j];
          dot += x * to_float(key[a][i].element(j));
        }
      }
#pragma unroll
      for (int stride = SHARERS / 2; stride > 0; stride /= 2) {
        dot += __shfl_xor_sync(ALL_LANES, dot, stride);
      }
      logit[a] = scale * dot;
      if (token[a] >= 0) larger = fmaxf(larger, logit[a]);
    }
    const float shrink = share(top, larger);  // the sums so far are relative to the old top
    top = larger;
    mass *= shrink;
#pragma unroll
    for (int i = 0; i < PER; ++i) {
#pragma unroll
      for (int j = 0; j < VEC; ++j) sum[i][j] *= shrink;
    }
#pragma unroll
    for (int a = 0; a < AHEAD; ++a) {
      if (!EARLY) load(values, token[a], value[a]);
      // expf and not `share`: an infinite logit must become NaN.
      const float p = token[a] >= 0 ? expf(logit[a] - top) : 0.0f;
      mass += p;
#pragma unroll
      for (int i = 0; i < PER; ++i) {
#pragma unroll
        for (int j = 0; j < VEC; ++j) sum[i][j] += p * to_float(value[a][i].element(j));
      }
    }
  }
  if (beyond && largest >= tokens.S) atomicMax(beyond, largest + 1u);

  // Merge the teams of a warp, then the warps.
#pragma unroll
  for (int stride = SHARERS; stride < LANES; stride *= 2) {
    const float other_top = __shfl_xor_sync(ALL_LANES, top, stride);
    const float larger = fmaxf(top, other_top);
    const float own = share(top, larger), other = share(other_top, larger);
    mass = own * mass + other * __shfl_xor_sync(ALL_LANES, mass, stride);
    top = larger;
#pragma unroll
    for (int i = 0; i < PER; ++i) {
#pragma unroll
      for (int j = 0; j < VEC; ++j) {
        sum[i][j] = own * sum[i][j] + other * __shfl_xor_sync(ALL_LANES, sum[i][j], stride);
      }
    }
  }
  if (threadIdx.x % LANES < SHARERS) {
#pragma unroll
    for (int i = 0; i < PER; ++i) {
#pragma unroll
      for (int j = 0; j < VEC; ++j) sums[warp * DT + (i * SHARERS + lane) * VEC + j] = sum[i][j];
    }
  }
  if (threadIdx.x % LANES == 0) {
    tops[warp] = top;
    masses[warp] = mass;
  }
  if (threadIdx.x == 0) not_finite = 0;
  __syncthreads();

  // Merge the warps into the sums of the row, or of this split of it.
  float row_top = no_token(), row_mass = 0;
  for (int w = 0; w < ATTEND_WARPS; ++w) row_top = fmaxf(row_top, tops[w]);
  for (int w = 0; w < ATTEND_WARPS; ++w) row_mass += share(tops[w], row_top) * masses[w];
  auto sum_of_warps = [&](int d) {
    float total = 0;
    for (int w = 0; w < ATTEND_WARPS; ++w) total += share(tops[w], row_top) * sums[w * DT + d];
    return total;
  };

  // With several splits, each writes its sums, its top and its mass, and the last block merges
  // them.
  float* parts = partial + row * splits * (D + 2);
  if (splits > 1) {
    float* part = parts + blockIdx.y * (D + 2);
    for (int d = threadIdx.x; d < D; d += ATTEND_THREADS) part[d] = sum_of_warps(d);
    if (threadIdx.x == 0) {
      part[D] = row_top;
      part[D + 1] = row_mass;
    }
    __threadfence();  // other blocks see the parts before the count
    __syncthreads();
    if (threadIdx.x == 0) last = atomicAdd(&finished[row], 1u) == splits - 1u;
    __syncthreads();
    if (!last) return;
    __threadfence();
    if (threadIdx.x == 0) finished[row] = 0;
    row_top = no_token(), row_mass = 0;
    for (int i = 0; i < splits; ++i) row_top = fmaxf(row_top, __ldcg(parts + i * (D + 2) + D));
    for (int i = 0; i < splits; ++i) {
      const float* other = parts + i * (D + 2);
      row_mass += share(__ldcg(other + D), row_top) * __ldcg(other + D + 1);
    }
  }
  for (int d = threadIdx.x; d < D; d += ATTEND_THREADS) {
    float total = 0;
    if (splits == 1) {
      total = sum_of_warps(d);
    } else {
      for (int i = 0; i < splits; ++i) {
        const float* other = parts + i * (D + 2);
        total += share(__ldcg(other + D), row_top) * __ldcg(other + d);
      }
    }
    // The token with the largest logit adds exp(0) = 1, so the mass is 0 only where there is no
    // token.
    const float x = row_mass == 0 ? 0.0f : total / row_mass;
    if (!is_finite(x)) not_finite = 1;
    from_float(out[row * D + d], x);
  }
  if (threadIdx.x == 0) {
    lse[row] = row_top + logf(row_mass);
    if (row_mass != 0 && !is_finite(lse[row])) not_finite = 1;
  }
  __syncthreads();
  if (not_finite) {
    attend_in_double<DT>(
        q_row, keys, values, b, head, tokens, D, scale, shared_sums, out + row * D, lse + row);
  }
}
