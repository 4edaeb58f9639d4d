// select_chunks: from coded queries and keys to token indices, with no distance in global memory.
//
// A block computes the distances of one chunk of tokens of a KV head to QUERIES of its queries,
// into shared memory, and selects there. It writes 6 K bytes per chunk and query. Distances in
// global memory would take 2 bytes per token, written and read, beside the 16 P bytes of a token's
// codes. To compute the distances twice would read the codes twice. merge_candidates in topk.cu is
// the second step.
#include "topk.cuh"

// Blocks per multiprocessor whose registers fit, without a spill.
template <int PLANES, int P, int QUERIES>
constexpr int RESIDENT =
    P > 2 ? 2 : P == 2 && (PLANES == 8 || QUERIES == 8) ? (PLANES == 8 ? 3 : 4 - SPARE) : 4;

// Grid: chunks, groups of QUERIES of the G L queries of a KV head, B H_kv. query, planes and
// lengths are those of score.cu. Candidates (B H L, chunks, slots), indices (B, H, L, K). Dynamic
// shared memory: min(QUERIES, G L) rows of `stride` distances,
// which hold the chunks of a sequence of `length` tokens.
template <int PLANES, int P, int QUERIES>
__global__ void __launch_bounds__(256, RESIDENT<PLANES, P, QUERIES>) select_chunks(
    const Word* query, Int parts, const Word* planes, Int planes_plane, Int planes_batch,
    Int planes_head, const int* lengths, Int length, Int H_kv, Int G, Int L, Int stride, Int K,
    Int sinks, Int recent, unsigned short* candidate_distances, int* candidate_tokens, Int slots,
    int* indices) {
  DYN_SHARED(unsigned short, distances);
  alignas(16) __shared__ unsigned queries[QUERIES * PLANES * 2 * P];
  __shared__ SelectionScratch scratch;
  const int b = blockIdx.z / H_kv, head = blockIdx.z % H_kv;
  const int rows = G * L, first_row = blockIdx.y * QUERIES;
  const int count = min(rows - first_row, QUERIES);
  const Int row = static_cast<Int>(blockIdx.z) * rows + first_row;
  const int n = lengths ? min(static_cast<Int>(lengths[b]), length) : length, step = stride;
  const int size = chunk_size(n, gridDim.x, step), start = blockIdx.x * size;
  const Candidates<unsigned short> out{
      candidate_distances, candidate_tokens, indices, static_cast<int>(gridDim.x),
      static_cast<int>(slots)};
  if (start >= n) {
    for (int q = 0; q < count; ++q) leave_unused(0, row + q, blockIdx.x, K, whole_block(), out);
    return;
  }
  load_queries<PLANES, P, QUERIES>(queries, query + row * parts * P, parts, count);
  __syncthreads();

  const Word* const high = planes + b * planes_batch + head * planes_head;
  score_tiles<PLANES, P, QUERIES>(
      high, high + planes_plane, start / TILE, (min(start + size, n) + TILE - 1) / TILE, queries,
      count,
      [&](int q, int token, int distance) { distances[q * step + token - start] = distance; });
  __syncthreads();
  const Team team = QUERIES == 1 ? whole_block() : team_of(count);
  const bool has_row = team.number < count;
  const int q = has_row ? team.number : 0;
  const int seen = has_row ? visible_tokens(n, (first_row + q) % L, L) - start : 0;
  const int tokens = max(min(size, seen), 0);
  unsigned short* const own = distances + q * step;
  constexpr Known KNOWN = LARGEST<PLANES, P> < 1 << 15 ? Known::BELOW_2_15 : Known::ALL_THERE;
  select_from_chunk<KNOWN>(
      own, tokens, start, row + q, blockIdx.x, K, sinks, recent, team, scratch,
      spread_of(own, tokens, team), out, has_row);
}
