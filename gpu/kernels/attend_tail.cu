// attend_tail: attention of each query in three tiers, in one softmax.
//
// The blocks of a row take parts of its exact tier, as those of attend.cu, or parts of its coded tier.
// The block that finishes last merges all parts with the rest. The time is the latency of scattered
// rows: 2 D + 2 Dv bytes per exact token in float16, and per coded token 16 P bytes of the code of its
// value, and a scale.
//
// The sum of the coded values is made in the transformed domain, without their bases. So one transform
// per row is enough. After it each base is added, times the weights of its tokens.
#include "attend.cuh"
#include "warp_row.cuh"

// The coded tier of one row: tokens (M,), -1 after the last one, and their logits (M,).
struct CodedTier {
  const int* tokens;
  const float* logits;
};

// The coded values of one head, less their bases. Word p of the high plane of a token is
// words[2 P token + p], and that of the low plane comes P words later.
struct CodedValues {
  const Word* words;
  const unsigned char* scales;  // (T, 64)
};

// Attends to the places begin to end - 1 of a coded tier, into the sums of each warp, transformed. The
// mass of the tokens of the first tile goes to first_masses, that of all others to out.masses. The
// caller must set a barrier before it reads them.
//
// A lane takes the weight of one token, for 32 tokens at a time. Then the warp adds up their values,
// one after another: lane l holds the coordinates l, l + 32, l + 64, ...
//
// With GENERAL the values may have fewer coordinates than DT allows: Dt of them, which are 2 P words of
// 32 bits per plane and token.
template <int DT, bool GENERAL>
__device__ __forceinline__ void attend_coded(
    const CodedTier& tier, const CodedValues& values, int Dt, int begin, int end,
    const WarpSums<DT>& out, float* first_masses) {
  constexpr int N = DT / LANES, MOST = (N + 1) / 2 * 2;  // 32-bit words per plane and token
  constexpr int PART = GENERAL ? 2 : N < 4 ? MOST : 4;   // that one load takes
  const int words = GENERAL ? (Dt + 63) / 64 * 2 : MOST;
  constexpr int TOGETHER = N <= 4 ? 4 : 1;                       // tokens whose loads are in flight
  const int lane = lane_index(), warp = threadIdx.x / LANES;
  float sum[N];
#pragma unroll
  for (int j = 0; j < N; ++j) sum[j] = 0;
  float top = no_token(), first_mass = 0, mass = 0;
  float along = 0;  // 1.5 times this is in all sums, because the code c stands for c - 1.5
  for (int start = begin + warp * LANES; start < end; start += ATTEND_THREADS) {
    const int at = start + lane;
    const int token = at < end ? tier.tokens[at] : -1;
    const float logit = token >= 0 ? tier.logits[at] : no_token();
    float larger = fmaxf(top, logit);
#pragma unroll
    for (int stride = 1; stride < LANES; stride *= 2) {
      larger = fmaxf(larger, __shfl_xor_sync(ALL_LANES, larger, stride));
    }
    if (larger == no_token()) continue;
    const float shrink = share(top, larger);
    top = larger;
    const float p = token >= 0 ? expf(logit - top) : 0.0f;
    const unsigned char byte = token >= 0 ? values.scales[token] : 0;
    const float scaled = byte ? p * scale_of(byte) : 0.0f;  // of a value the byte 0 stands for 0
    first_mass = first_mass * shrink + (token < TILE ? p : 0.0f);
    mass = mass * shrink + (token < TILE ? 0.0f : p);
    along = along * shrink + scaled;
#pragma unroll
    for (int j = 0; j < N; ++j) sum[j] *= shrink;
    const int n = min(LANES, end - start);
#pragma unroll TOGETHER
    for (int i = 0; i < n; ++i) {
      const int other = max(__shfl_sync(ALL_LANES, token, i), 0);  // a missing token has the weight 0
      const float one = __shfl_sync(ALL_LANES, scaled, i);
      const float two = one + one;
      const unsigned* const high =
          reinterpret_cast<const unsigned*>(values.words + static_cast<Int>(other) * words);
#pragma unroll
      for (int first = 0; first < N; first += PART) {
        if (GENERAL && first >= words) break;
        using Words = Vector<unsigned, PART>;
        const Words upper = *reinterpret_cast<const Words*>(high + first);
        const Words lower = *reinterpret_cast<const Words*>(high + words + first);
#pragma unroll
        for (int j = first; j < (first + PART < N ? first + PART : N); ++j) {
          float y = sum[j];
          if (upper.x[j - first] >> lane & 1) y += two;
          if (lower.x[j - first] >> lane & 1) y += one;
          sum[j] = y;
        }
      }
    }
  }
#pragma unroll
  for (int stride = 1; stride < LANES; stride *= 2) {
    first_mass += __shfl_xor_sync(ALL_LANES, first_mass, stride);
    mass += __shfl_xor_sync(ALL_LANES, mass, stride);
    along += __shfl_xor_sync(ALL_LANES, along, stride);
  }
#pragma unroll
  for (int j = 0; j < N; ++j) {
    const int c = lane + LANES * j;
    out.sums[warp * DT + c] = c < Dt ? sum[j] - 1.5f * along : 0.0f;
  }
  if (lane == 0) {
    out.tops[warp] = top;
    out.masses[warp] = mass;
    first_masses[warp] = first_mass;
  }
}

// Grid: rows of q (B, H, L, D); exact_splits parts of the exact tier indices (B, H, L, K), then parts of
// the coded tier, coded and logits (B, H, L, M). rest (B, H, L, 2) is the largest logit of all other
// tokens and their sum of weights. k (B, H_kv, S, D) and v (B, H_kv, S, Dv); sequence b has lengths[b]
// tokens, at most `length`, or `length` where lengths is null, and the queries are its last L tokens.
// total (B, H_kv, Dv) is the sum of its values. q, k, v, VEC, GENERAL, soft_cap and sink_logits as in
// attend.cu; `logits` and `rest` have been capped. Dt is Dv, padded. v_codes, v_scales and bases are
// codes, scales and bases of values.cu. partial (rows, splits, DT + 3) holds the parts: sums, the
// largest logit, and two masses, of which the second is that of coded tokens of the first tile.
// finished (rows,) is 0 before and after the launch.
template <typename TQ, typename TK, int DT, int VEC, bool GENERAL = false>
__global__ void __launch_bounds__(ATTEND_THREADS, 1) attend_tail(
    const TQ* q, Int q_batch, Int q_head, Int q_token,
    const TK* k, Int k_batch, Int k_head, Int k_token,
    const TK* v, Int v_batch, Int v_head, Int v_token,
    const int* indices, const int* coded, const float* logits, const float* rest, const Word* v_codes,
    Int v_codes_batch, Int v_codes_head, const unsigned char* v_scales, Int v_scales_batch,
    Int v_scales_head, const float* bases, Int bases_batch, Int bases_head, const float* total,
    const int* lengths, Int length, Int H, Int H_kv, Int L, Int S, Int K, Int M, Int exact_splits,
    Int D, Int Dv, Int Dt, float scale, float soft_cap, const float* sink_logits, float hadamard_scale,
    TQ* out, float* lse, float* partial, unsigned* finished) {
  constexpr int N = DT / LANES, PART = DT + 3;
  __shared__ float shared_query[EARLY<DT, VEC> ? 1 : DT];
  __shared__ float sums[ATTEND_WARPS * DT];
  __shared__ float tops[ATTEND_WARPS], masses[ATTEND_WARPS], first_masses[ATTEND_WARPS];
  __shared__ int last;
  // Where the row belongs, for after the sums. In registers it would be too much at Dt = 2048.
  __shared__ int of_batch, of_head, of_query;
  const Position at = position<DT, VEC>();
  const Int row = blockIdx.x;
  const int l = row % L, h = row / L % H, b = row / (L * H);
  const int head = h / (H / H_kv);
  const int splits = gridDim.y, exact = exact_splits, split = blockIdx.y;
  const WarpSums<DT> warps{sums, tops, masses};
  const Strided<TK> values{v, v_batch, v_head, v_token};
  if (threadIdx.x == 0) of_batch = b, of_head = head, of_query = l;
  if (split < exact) {
    const int count = S == 0 ? 0 : K;
    const Tokens tokens{indices + row * K, false, count, 0, static_cast<int>(S)};
    const int size = (count + exact - 1) / exact, begin = min(split * size, count);
    attend_tokens<TQ, TK, DT, VEC, GENERAL>(
        at, q + b * q_batch + h * q_head + l * q_token, {k, k_batch, k_head, k_token}, values, b, head,
        tokens, begin, min(begin + size, count), D, Dv, {scale, soft_cap}, false, shared_query, warps,
        nullptr);
  } else {
    const int parts = splits - exact, count = M;
    const int size = (count + parts - 1) / parts, begin = min((split - exact) * size, count);
    const CodedValues held{
        v_codes + b * v_codes_batch + head * v_codes_head,
        v_scales + b * v_scales_batch + head * v_scales_head};
    attend_coded<DT, GENERAL>(
        {coded + row * M, logits + row * M}, held, static_cast<int>(Dt), begin,
        min(begin + size, count), warps, first_masses);
  }
  __syncthreads();
  const float own = warps.top();
  float* const parts = partial + row * splits * PART;
  float* const part = parts + split * PART;
  for (int d = threadIdx.x; d < DT; d += ATTEND_THREADS) part[d] = warps.sum(d, own);
  if (threadIdx.x == 0) {
    part[DT] = own;
    part[DT + 1] = warps.mass(own);
    part[DT + 2] = split < exact ? 0.0f : WarpSums<DT>{sums, tops, first_masses}.mass(own);
  }
  __threadfence();  // other blocks see the parts before the count
  __syncthreads();
  if (threadIdx.x == 0) last = atomicAdd(&finished[row], 1u) == splits - 1u;
  __syncthreads();
  if (!last) return;
  __threadfence();
  if (threadIdx.x == 0) finished[row] = 0;

  // The sink counts once per row, so after the parts.
  const float sink = sink_of(sink_logits, row / L % H);
  float top = fmaxf(rest[row * 2], sink);
  for (int i = 0; i < splits; ++i) top = fmaxf(top, __ldcg(parts + i * PART + DT));
  const auto share_of = [&](int i) { return share(__ldcg(parts + i * PART + DT), top); };
  const auto sum_of = [&](int first, int end, int d) {
    float sum = 0;
    for (int i = first; i < end; ++i) sum += share_of(i) * __ldcg(parts + i * PART + d);
    return sum;
  };
  const float others = rest[row * 2 + 1] * share(rest[row * 2], top);
  const float on_first = sum_of(exact, splits, DT + 2), on_mean = sum_of(exact, splits, DT + 1);
  const float on_sink = sink > no_token() ? share(sink, top) : 0.0f;
  const float mass = sum_of(0, exact, DT + 1) + on_mean + on_first + others + on_sink;
  for (int c = threadIdx.x; c < DT; c += ATTEND_THREADS) sums[c] = sum_of(exact, splits, c);
  __syncthreads();
  if (threadIdx.x < LANES) {
    float y[N];
    load_row(y, sums, DT);
    transform(y, Dt, hadamard_scale);
    store_row(y, sums, DT);
  }
  __syncthreads();
  // `total` has the values of tokens after the query too.
  const int n = lengths ? min(static_cast<Int>(lengths[of_batch]), length) : length;
  const int seen = visible_tokens(n, of_query, L);
  const int width = GENERAL ? Dv : D;  // of a value
  total += (of_batch * H_kv + of_head) * width;
  bases += of_batch * bases_batch + of_head * bases_head;
  for (int d = threadIdx.x; d < width; d += ATTEND_THREADS) {
    float sum = sum_of(0, exact, d) + sums[d] + on_first * bases[d] + on_mean * bases[width + d];
    if (others > 0) {
      float of_values = total[d];
      for (int token = seen; token < n; ++token) {
        of_values -= to_float(values.row(of_batch, of_head, token)[d]);
      }
      sum += others * (of_values / static_cast<float>(seen));
    }
    from_float(out[row * width + d], mass == 0 ? 0.0f : sum / mass);
  }
  if (threadIdx.x == 0) lse[row] = top + logf(mass);
}
