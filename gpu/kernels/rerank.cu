// rerank: the tokens with the largest inner products, among the chosen tokens of each query.
//
// The time is the latency of scattered rows, as in attend.cu: M rows of k per query, each read
// once. A block takes a row of the candidates, computes all its products and selects as topk.cu
// does, so products do not go from one block to another.
#include "topk.cuh"

constexpr int SUMS = 16;  // partial sums of a product, in the specified order of additions
constexpr int AHEAD = 4;  // loads in flight per thread

// Grid: rows of q (B, H, L, D). k (B, H_kv, S, D); candidates (B, H, L, M) ascend, and those
// outside 0 to S - 1 are left out; the largest of S or more, plus 1, goes to *beyond, unless that
// is null. out (B, H, L, K), with -1 after the last token. Dynamic shared
// memory: `width` floats, where width is D rounded up to a multiple of AHEAD SUMS, and in_shared
// distances. in_shared is M, or 0 where they are too many and go to `workspace` (rows, M). With
// VEC > 1 every row of k is aligned to VEC elements and VEC divides D.
template <typename TQ, typename TK, int VEC>
__global__ void __launch_bounds__(512, 2) rerank(
    const TQ* q, Int q_batch, Int q_head, Int q_token,
    const TK* k, Int k_batch, Int k_head, Int k_token,
    const int* candidates, Int H, Int H_kv, Int L, Int S, Int M, Int D, Int width,
    unsigned* workspace, Int in_shared, Int K, Int sinks, Int recent, unsigned* beyond, int* out) {
  constexpr int SHARERS = SUMS / VEC;  // threads that share a token, each with VEC partial sums
  constexpr int FOUR = VEC < 4 ? VEC : 4;  // coordinates of the query that one instruction loads
  DYN_SHARED(float, query);
  __shared__ SelectionScratch scratch;
  const Int row = blockIdx.x;
  const int l = row % L, h = row / L % H, b = row / (L * H);
  const int head = h / (H / H_kv), n = M, end = width;
  unsigned* const distances =
      in_shared == M ? reinterpret_cast<unsigned*>(query + width) : workspace + row * M;
  candidates += row * M;
  out += row * K;

  const TQ* const q_row = Strided<TQ>{q, q_batch, q_head, q_token}.row(b, h, l);
  for (int d = threadIdx.x; d < end; d += blockDim.x) query[d] = d < D ? to_float(q_row[d]) : 0.0f;
  __syncthreads();

  using Part = Vector<TK, VEC>;
  const Strided<TK> keys{k, k_batch, k_head, k_token};
  const int first = threadIdx.x % SHARERS * VEC, team = threadIdx.x / SHARERS;
  const int teams = blockDim.x / SHARERS;
  for (int start = 0; start < n; start += teams) {
    const int place = start + team;
    const int token = place < n ? candidates[place] : -1;
    const bool there = token >= 0 && token < S;
    if (token >= S && beyond) atomicMax(beyond, token + 1u);
    const TK* const key = keys.row(b, head, there ? token : 0);
    float sum[VEC] = {};
    for (int at = first; at < end; at += AHEAD * SUMS) {
      Part parts[AHEAD];
#pragma unroll
      for (int a = 0; a < AHEAD; ++a) {
        const int d = at + a * SUMS;
        parts[a] = there && d < D ? *reinterpret_cast<const Part*>(key + d) : Part{};
      }
      // The zeros after D change no sum, because no sum is -0.
#pragma unroll
      for (int a = 0; a < AHEAD; ++a) {
#pragma unroll
        for (int i = 0; i < VEC; i += FOUR) {
          const float* const from = query + at + a * SUMS + i;
          const auto some = *reinterpret_cast<const Vector<float, FOUR>*>(from);
#pragma unroll
          for (int j = 0; j < FOUR; ++j) {
            const float term = __fmul_rn(some.x[j], to_float(parts[a].x[i + j]));
            sum[i + j] = __fadd_rn(sum[i + j], term);
          }
        }
      }
    }
    // The upper half of the sums is added to the lower half: first between threads, then in each.
#pragma unroll
    for (int stride = SHARERS / 2; stride > 0; stride /= 2) {
#pragma unroll
      for (int j = 0; j < VEC; ++j) {
        sum[j] = __fadd_rn(sum[j], __shfl_xor_sync(ALL_LANES, sum[j], stride));
      }
    }
#pragma unroll
    for (int half = VEC / 2; half > 0; half /= 2) {
#pragma unroll
      for (int j = 0; j < half; ++j) sum[j] = __fadd_rn(sum[j], sum[j + half]);
    }
    // No product is -0, because every sum begins at +0.
    if (first == 0 && place < n) {
      distances[place] = there ? rank_of(sum[0]) : NOT_THERE<unsigned>;
    }
  }
  __syncthreads();
  const int taken = select_nearest(
      distances, n, K, sinks, recent, scratch, AsStored<unsigned>{distances},
      [&](int at, int i, unsigned) { out[at] = candidates[i]; });
  for (int i = taken + threadIdx.x; i < K; i += blockDim.x) out[i] = -1;
}
