// begin_step: all that a decode step does before its selection. The new keys and values go after
// the tokens of each sequence, the keys are coded, the queries are coded, and the lengths grow.
//
// The time is that of the launch, and of a row's way through a warp. One block per KV head takes
// the keys, and other blocks take the queries at the same time. Where a tail needs coded values, one
// more block per KV head takes the values. Once in 64 tokens of centered codes a tile becomes full,
// and the block of the keys codes all its tokens. The code of a value is written once.
#include "values.cuh"

// Writes `size` new rows of D elements as the tokens begin, begin + 1, ... of one head.
template <typename T>
__device__ __forceinline__ void append_rows(
    const T* from, Int from_token, T* to, Int to_token, Int begin, int size, int D) {
  for (int i = threadIdx.x; i < size * D; i += blockDim.x) {
    const int s = i / D, d = i % D;
    to[(begin + s) * to_token + d] = from[s * from_token + d];
  }
}

// x, or 0 if it is not finite.
__device__ __forceinline__ float finite(float x) { return x - x == 0.0f ? x : 0.0f; }

// Adds new values to the sums of one head, in the order of reference.values.total_of. `full` is the
// sum of the full tiles, `open` that of the open tile, and `total` their sum. bases (2, D) become the
// first value and the mean of the first 64, when these come.
template <typename T>
__device__ __forceinline__ void add_values(
    const T* v, Int v_token, Span span, float* full, float* open, float* total, float* bases, int D) {
  for (int d = threadIdx.x; d < D; d += blockDim.x) {
    float tiles = full[d], tile = open[d];
    for (Int token = span.begin; token < span.end; ++token) {
      const float x = to_float(v[(token - span.begin) * v_token + d]);
      if (token == 0) bases[d] = finite(x);
      tile = __fadd_rn(tile, x);
      if (token % TILE == TILE - 1) {
        if (token == TILE - 1) bases[D + d] = finite(__fmul_rn(tile, 1.0f / TILE));
        tiles = __fadd_rn(tiles, tile);
        tile = 0.0f;
      }
    }
    full[d] = tiles;
    open[d] = tile;
    total[d] = __fadd_rn(tiles, tile);
  }
}

// encode_open_tile as a function of its own. Inlined above Dt = 1024 it would spill registers.
template <int N, typename T>
__device__ __noinline__ void encode_apart(const CenteredHead<T>& head, Span span) {
  encode_open_tile<N, false>(head, span);
}

// Codes the new tokens of one head.
template <int N, typename T>
__device__ __forceinline__ void encode_new(const CenteredHead<T>& head, Span span, float* rows) {
  for (Int tile = span.begin / TILE; tile < span.end / TILE; ++tile) {
    encode_full_tile<N, N <= 32>(head, span, tile, rows);
    __syncthreads();  // before the next tile uses `rows`, and before open_tile is written
  }
  if constexpr (N <= 32) {
    encode_open_tile<N>(head, span);
  } else {
    encode_apart<N>(head, span);
  }
}

// Grid: H_kv blocks for keys and values, H_kv more for values where v_codes is not null, then blocks
// for the H L queries of a sequence, one per warp; B. q (B, H, L, D) becomes `query`: planes of the
// weighted metric (B, H, L, query_bits * P), or codes (B, H, L, 2 P) where query_bits is 0. The
// transformed queries go to x (B, H, L, Dt), unless it is null.
//
// k_new (B, H_kv, L, D) and v_new (B, H_kv, L, Dv) become the tokens lengths[b], lengths[b] + 1, ... of
// k and v (B, H_kv, capacity, D or Dv), and of planes. Tokens that do not fit are not written, because the host
// does not know the lengths. Plain codes have null for means, scales and open_tile. For centered
// codes these arrays are those of center.cu, and dynamic shared memory holds a transformed row per
// warp, and a mean. Only with centered codes there may be third bits, and coded values: v_codes,
// v_scales and bases are codes, scales and bases of values.cu, and sums (3, B, H_kv, Dv) are full, open
// and total of add_values. Above 1024 coordinates (N > 32) there are none of these: a thread's
// registers do not hold them on every architecture. NV is the N of coded values, and v_padded and
// v_hadamard_scale are the Dt and the factor of their transform.
//
// The least number of blocks keeps the compiler from taking too few registers.
//
// lengths (B,) grow by L. The last block of a sequence does that, when all have read the length.
// `finished` (B,) is 0 before and after the launch.
template <typename T, int N, int NV = N>
__global__ void __launch_bounds__(128, N <= 8 && NV <= 8 ? 4 : 1) begin_step(
    const T* q, Int q_batch, Int q_head, Int q_token, Int H, Int L, Int query_bits, Word* query, float* x,
    const T* k_new, Int k_new_batch, Int k_new_head, Int k_new_token,
    const T* v_new, Int v_new_batch, Int v_new_head, Int v_new_token,
    T* k, Int k_batch, Int k_head, Int k_token, T* v, Int v_batch, Int v_head, Int v_token,
    Word* planes, Int planes_plane, Int planes_batch, Int planes_head,
    Half* means, Int means_batch, Int means_head,
    unsigned char* scales, Int scales_batch, Int scales_head,
    float* open_tile, Int open_tile_batch, Int open_tile_head,
    Word* bits, Int bits_batch, Int bits_head,
    unsigned char* finer, Int finer_batch, Int finer_head,
    Word* v_codes, Int v_codes_batch, Int v_codes_head,
    unsigned char* v_scales, Int v_scales_batch, Int v_scales_head,
    float* bases, Int bases_batch, Int bases_head, float* sums, float cut,
    const float* thresholds, Int thresholds_head, int* lengths, unsigned* finished, Int H_kv,
    Int capacity, Int D, Int Dt, float hadamard_scale, Int Dv, Int v_padded, float v_hadamard_scale) {
  DYN_SHARED(float, rows);
  constexpr int P = words<N>();
  constexpr bool TAIL = N <= 32 && NV <= 32;
  const Int b = blockIdx.y, coders = TAIL && v_codes ? 2 * H_kv : H_kv;
  const int warp = threadIdx.x / LANES, warps = blockDim.x / LANES;
  if (blockIdx.x >= coders) {
    const Int row = (blockIdx.x - coders) * warps + warp;  // of the sequence
    if (row >= H * L) return;
    const Int h = row / L, l = row % L, to = b * H * L + row;
    float y[N];
    load_row(y, q + b * q_batch + h * q_head + l * q_token, D);
    transform(y, Dt, hadamard_scale);
    if (x) store_row(y, x + to * Dt, Dt);
    if (query_bits > 0) {
      write_query(y, Dt, static_cast<int>(query_bits), query + to * query_bits * P);
    } else {
      Word* const high = query + to * 2 * P;
      write_codes(y, Dt, thresholds + h / (H / H_kv) * thresholds_head, high, high + P, 1);
    }
    return;
  }

  const bool values = TAIL && blockIdx.x >= H_kv;
  const Int head = values ? blockIdx.x - H_kv : blockIdx.x;
  const Int before = lengths[b];
  const Span span{min(before, capacity), min(before + L, capacity)};
  const int size = static_cast<int>(span.end - span.begin), dims = D;
  const int v_dims = Dv;
  k_new += b * k_new_batch + head * k_new_head;
  v_new += b * v_new_batch + head * v_new_head;
  if (!values) {
    append_rows(
        k_new, k_new_token, k + b * k_batch + head * k_head, k_token, span.begin, size, dims);
  }
  if (values || !TAIL || !v_codes) {
    append_rows(
        v_new, v_new_token, v + b * v_batch + head * v_head, v_token, span.begin, size, v_dims);
  }
  thresholds += head * thresholds_head;
  planes += b * planes_batch + head * planes_head;
  if (values) {
    const Int row = (b * H_kv + head) * Dv, all = gridDim.y * H_kv * Dv;
    bases += b * bases_batch + head * bases_head;
    add_values(
        v_new, v_new_token, span, sums + row, sums + all + row, sums + 2 * all + row, bases, v_dims);
    const ValueHead mine{
        v_codes + b * v_codes_batch + head * v_codes_head,
        v_scales + b * v_scales_batch + head * v_scales_head, bases, cut, v_dims,
        static_cast<int>(v_padded), v_hadamard_scale};
    __syncthreads();  // the bases are there
    for (int s = warp; s < size; s += warps) {
      write_value<NV>(v_new + s * v_new_token, mine, span.begin + s);
    }
  } else if (means) {
    const CenteredHead<T> mine{
        k_new, k_new_token, planes, planes_plane,
        means + b * means_batch + head * means_head,
        scales + b * scales_batch + head * scales_head,
        TAIL && bits ? bits + b * bits_batch + head * bits_head : nullptr,
        finer + b * finer_batch + head * finer_head,
        open_tile + b * open_tile_batch + head * open_tile_head, thresholds, dims,
        static_cast<int>(Dt), hadamard_scale};
    encode_new<N>(mine, span, rows);
  } else {
    for (int s = warp; s < size; s += warps) {
      float y[N];
      load_row(y, k_new + s * k_new_token, D);
      transform(y, Dt, hadamard_scale);
      const Int token = span.begin + s;
      Word* const high = planes + token / 8 * (8 * P) + token % 8;
      write_codes(y, Dt, thresholds, high, high + planes_plane, 8);
    }
  }
  __syncthreads();  // all threads have read the length
  if (threadIdx.x == 0) {
    __threadfence();
    const unsigned last = static_cast<unsigned>(coders - 1);
    if (atomicInc(&finished[b], last) == last) lengths[b] = static_cast<int>(before + L);
  }
}
