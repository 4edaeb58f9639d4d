// select_centered: from coded queries and centered codes to token indices, with neither distances
// nor estimates in global memory.
//
// As select_chunks in select.cu, but a block orders its tokens by estimated inner products. It
// turns distances into the ranks of the estimates in shared memory, in the first pass of the
// selection. Beside the 16 P bytes of codes it reads one byte per token, and 2 Dt bytes per tile.
// The candidates have 8 bytes each, because a rank has 32 bits. For a tail the block also adds up the
// weights of all tokens that it does not select.
#include "tail.cuh"

constexpr int SUMS = 16;              // partial sums of a product, in the specified order
constexpr int SHARERS = 4;            // threads that share a product with a mean: a team
constexpr int EACH = SUMS / SHARERS;  // neighbouring partial sums of a thread

// The inner products (count, tiles) of `count` queries x (count, Dt) in shared memory and of
// `tiles` means (tiles, Dt), in the order of lane_sums in warp_row.cuh. A team of threads takes one
// product. Teams next to each other read the same mean at the same time.
template <int P>
__device__ __forceinline__ void multiply_means(
    const float* x, const Half* means, int width, int tiles, int count, float* products) {
  const int Dt = P == 1 ? width : 64 * P;  // at P > 1 the compiler knows it
  const int first = threadIdx.x % SHARERS * EACH;
  const int teams = blockDim.x / SHARERS, pairs = tiles * count;
  for (int start = 0; start < pairs; start += teams) {
    const int pair = start + threadIdx.x / SHARERS;
    const int at = min(pair, pairs - 1);  // threads after the last pair repeat it
    const int q = at % count, tile = at / count;
    const float* const row = x + q * Dt;
    const Half* const mean = means + static_cast<Int>(tile) * Dt;
    float sum[EACH] = {};
    if (P > 1 || Dt >= SUMS) {
#pragma unroll(P == 2 ? 8 : 4)
      for (int i = first; i < Dt; i += SUMS) {
        const auto a = *reinterpret_cast<const Vector<float, EACH>*>(row + i);
        const auto b = *reinterpret_cast<const Vector<Half, EACH>*>(mean + i);
#pragma unroll
        for (int j = 0; j < EACH; ++j) {
          sum[j] = __fadd_rn(sum[j], __fmul_rn(a.x[j], to_float(b.x[j])));
        }
      }
    } else {
#pragma unroll
      for (int j = 0; j < EACH; ++j) {
        const int i = first + j;
        if (i < Dt) sum[j] = __fadd_rn(0.0f, __fmul_rn(row[i], to_float(mean[i])));
      }
    }
    // The upper half of the sums is added to the lower half: first between threads, then in each.
#pragma unroll
    for (int stride = SHARERS / 2; stride > 0; stride /= 2) {
#pragma unroll
      for (int j = 0; j < EACH; ++j) {
        sum[j] = __fadd_rn(sum[j], __shfl_xor_sync(ALL_LANES, sum[j], stride));
      }
    }
    const float total = __fadd_rn(__fadd_rn(sum[0], sum[2]), __fadd_rn(sum[1], sum[3]));
    if (first == 0 && pair < pairs) products[q * tiles + tile] = total;
  }
}

// What turns a distance d of a query into an estimate: (weights - 2 d) s unit + product with the
// mean, where s is the scale of the token.
struct Units {
  float unit;   // half of the change of a coordinate that one step of its weight means
  int weights;  // 3 times the sum of the weights
};

// The units of a query, by one warp, from its row x (Dt,) and its planes in shared memory.
template <int PLANES, int P>
__device__ __forceinline__ Units units_of(
    const float* x, int width, const unsigned* query, int bits) {
  const int lane = lane_index(), Dt = P == 1 ? width : 64 * P;
  float largest = 0.0f;
  for (int i = lane; i < Dt; i += LANES) largest = fmaxf(largest, fabsf(x[i]));
#pragma unroll
  for (int step = 1; step < LANES; step *= 2) {
    largest = fmaxf(largest, __shfl_xor_sync(ALL_LANES, largest, step));
  }
  int sum = 0;
  for (int i = lane; i < 2 * P; i += LANES) {
    int weight = 0;
#pragma unroll
    for (int b = 1; b < PLANES; ++b) weight = 2 * weight + __popc(query[b * 2 * P + i]);
    sum += weight;
  }
  sum = __reduce_add_sync(ALL_LANES, sum);
  return {__fdiv_rn(largest, static_cast<float>(2 * ((1 << (bits - 1)) - 1))), 3 * sum};
}

// |x|^2 of a row x (Dt,) in shared memory, by one warp.
__device__ __forceinline__ float square_of(const float* x, int width) {
  float square = 0.0f;
  for (int i = lane_index(); i < width; i += LANES) {
    square = __fadd_rn(square, __fmul_rn(x[i], x[i]));
  }
#pragma unroll
  for (int step = 1; step < LANES; step *= 2) {
    square = __fadd_rn(square, __shfl_xor_sync(ALL_LANES, square, step));
  }
  return square;
}

// Stores the mass of this block's chunk of a row into rests (rows, chunks, 2).
__device__ __forceinline__ void put(Mass mass, float* rests, Int row) {
  float* const to = rests + (row * gridDim.x + blockIdx.x) * 2;
  to[0] = mass.top;
  to[1] = mass.sum;
}

// n as a float32, exactly, for |n| < 2^22. An addition is faster than a conversion.
__device__ __forceinline__ float exact_float(int n) {
  return __fsub_rn(__int_as_float(0x4b400000 + n), 12582912.0f);  // 1.5 2^23
}

// Before sm_90 the cap of a tail takes a few registers more, which cost a block per multiprocessor.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
constexpr int CAP_SPARE = 1;
#else
constexpr int CAP_SPARE = SPARE;
#endif

// Blocks per multiprocessor whose registers fit, without a spill.
template <int PLANES, int P, int QUERIES>
constexpr int RESIDENT =
    P > 2 ? (P == 4 && PLANES == 8 ? 1 : 2)
    : (P == 1 && QUERIES == 8) || (P == 2 && PLANES == 8) ? 3
    : P == 2 && QUERIES == 8 ? 4 - CAP_SPARE : 4;

// Grid, query, planes, lengths, candidates and indices as for select_chunks, with ranks for
// distances. x (B, H, L, Dt) are the transformed queries; means (B, H_kv, T, Dt) and scales
// (B, H_kv, T, 64), where the part of one head is contiguous and aligned to 8 bytes. Dynamic shared
// memory, for `queries` = min(QUERIES, G L): rows of `stride` ranks, which hold the chunks of a
// sequence of `length` tokens, where stride is a multiple of 4; rows of Dt floats; `queries` floats
// per tile of a chunk; a byte per token of a chunk.
//
// For a tail, `rests` (B, H, L, chunks, 2) gets the top and the sum of each chunk's other tokens; see
// tail.cuh. A logit is logit_of with noise |x|^2, capped unless soft_cap is 0. facts (B, H, L, 3) get
// the unit and the weights of Units, and |x|^2; products (B, H, L, T) the products with the means.
// Else the three are null.
template <int PLANES, int P, int QUERIES>
__global__ void __launch_bounds__(256, RESIDENT<PLANES, P, QUERIES>) select_centered(
    const Word* query, Int parts, const float* x, const Word* planes, Int planes_plane,
    Int planes_batch, Int planes_head, const Half* means, Int means_batch, Int means_head,
    const unsigned char* scales, Int scales_batch, Int scales_head, const int* lengths, Int length,
    Int H_kv, Int G, Int L, Int Dt, Int stride, Int K, Int sinks, Int recent,
    unsigned* candidate_distances, int* candidate_tokens, Int slots, int* indices, float scale,
    float noise, float soft_cap, float* facts, float* products, Int T, float* rests) {
  DYN_SHARED(unsigned, ranks);
  alignas(16) __shared__ unsigned queries[QUERIES * PLANES * 2 * P];
  __shared__ SelectionScratch scratch;
  __shared__ Units units[QUERIES];
  __shared__ float squares[QUERIES];
  __shared__ Mass parts_of_mass[MAX_WARPS];
  const int b = blockIdx.z / H_kv, head = blockIdx.z % H_kv;
  const int rows = G * L, first_row = blockIdx.y * QUERIES;
  const int count = min(rows - first_row, QUERIES);
  const Int row = static_cast<Int>(blockIdx.z) * rows + first_row;
  const int n = lengths ? min(static_cast<Int>(lengths[b]), length) : length;
  const int step = stride, width = Dt;
  const int size = chunk_size(n, gridDim.x, step), start = blockIdx.x * size;
  const Candidates<unsigned> out{
      candidate_distances, candidate_tokens, indices, static_cast<int>(gridDim.x),
      static_cast<int>(slots)};
  if (start >= n) {
    for (int q = 0; q < count; ++q) {
      leave_unused(0, row + q, blockIdx.x, K, whole_block(), out);
      if (rests && threadIdx.x == 0) put(Mass::none(), rests, row + q);
    }
    return;
  }
  const int first_tile = start / TILE, last_tile = (min(start + size, n) + TILE - 1) / TILE;
  const int tiles = last_tile - first_tile;
  float* const rows_of_x = reinterpret_cast<float*>(ranks + min(rows, QUERIES) * step);
  float* const on_means = rows_of_x + count * width;
  unsigned* const scale_words = reinterpret_cast<unsigned*>(on_means + count * tiles);
  means += b * means_batch + head * means_head + static_cast<Int>(first_tile) * width;
  scales += b * scales_batch + head * scales_head + start;

  load_queries<PLANES, P, QUERIES>(queries, query + row * parts * P, parts, count);
  for (int i = threadIdx.x; i < count * width; i += blockDim.x) rows_of_x[i] = x[row * width + i];
  for (int i = threadIdx.x; i < tiles * (TILE / 4); i += blockDim.x) {
    scale_words[i] = reinterpret_cast<const unsigned*>(scales)[i];
  }
  __syncthreads();
  for (int q = threadIdx.x / LANES; q < count; q += blockDim.x / LANES) {
    const Units found = units_of<PLANES, P>(
        rows_of_x + q * width, width, queries + q * PLANES * 2 * P, parts);
    if (lane_index() == 0) units[q] = found;
    if (rests) {
      const float square = square_of(rows_of_x + q * width, width);
      if (lane_index() == 0) {
        squares[q] = square;
        if (blockIdx.x == 0) {
          float* const own = facts + (row + q) * 3;
          own[0] = found.unit, own[1] = static_cast<float>(found.weights), own[2] = square;
        }
      }
    }
  }
  multiply_means<P>(rows_of_x, means, width, tiles, count, on_means);
  const Word* const high = planes + b * planes_batch + head * planes_head;
  score_tiles<PLANES, P, QUERIES>(
      high, high + planes_plane, first_tile, last_tile, queries, count,
      [&](int q, int token, int distance) { ranks[q * step + token - start] = distance; });
  __syncthreads();
  if (rests) {
    for (int i = threadIdx.x; i < count * tiles; i += blockDim.x) {
      products[(row + i / tiles) * T + first_tile + i % tiles] = on_means[i];
    }
  }

  const unsigned char* const bytes = reinterpret_cast<const unsigned char*>(scale_words);
  const Team team = QUERIES == 1 ? whole_block() : team_of(count);
  const bool has_row = team.number < count;
  const int q = has_row ? team.number : 0;
  const int seen = has_row ? visible_tokens(n, (first_row + q) % L, L) - start : 0;
  const int tokens = max(min(size, seen), 0);
  unsigned* const own = ranks + q * step;
  const Units at = units[q];
  const float* const own_on_means = on_means + q * tiles;
  const auto rank = [&](unsigned distance, unsigned scale_byte, float on_mean) {
    const float code = exact_float(at.weights - 2 * static_cast<int>(distance));
    const float rest = __fmul_rn(__fmul_rn(code, scale_of(scale_byte)), at.unit);
    // The sum is never -0, because a product with a mean is a sum that begins at +0.
    return rank_of(__fadd_rn(rest, on_mean));
  };
  Spread spread = Spread::none();
  for (int v = team.thread; v < tokens / 4; v += team.threads) {  // the scales are four of a word
    auto some = reinterpret_cast<Vector<unsigned, 4>*>(own)[v];
    const float on_mean = own_on_means[static_cast<unsigned>(v) / (TILE / 4)];
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      some.x[j] = rank(some.x[j], scale_words[v] >> (8 * j) & 0xff, on_mean);
      spread.add(some.x[j]);
    }
    reinterpret_cast<Vector<unsigned, 4>*>(own)[v] = some;
  }
  if (team.thread < tokens % 4) {
    const int i = tokens - tokens % 4 + team.thread;
    own[i] = rank(own[i], bytes[i], own_on_means[static_cast<unsigned>(i) / TILE]);
    spread.add(own[i]);
  }
  select_from_chunk<Known::ALL_THERE>(
      own, tokens, start, row + q, blockIdx.x, K, sinks, recent, team, scratch, spread, out, has_row,
      rests != nullptr);
  if (!rests) return;
  for (int r = 0; r < count; ++r) {
    const int seen = visible_tokens(n, (first_row + r) % L, L) - start;
    const float own_noise = __fmul_rn(noise, squares[r]);
    const unsigned* const own = ranks + r * step;
    const auto scale_at = [&](int i) { return scale_of(bytes[i]); };
    const int count = min(size, seen);
    const Mass others = mass_of_block(
        add_capped(own, count, scale, own_noise, soft_cap, scale_at, Mass::none()),
        parts_of_mass);
    if (threadIdx.x == 0) put(others, rests, row + r);
  }
}
