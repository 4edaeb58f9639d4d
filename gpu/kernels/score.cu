// score: distances (B, H, L, S) between queries and coded keys.
//
// The time is that of the bytes of the codes; with more than a few queries per KV head, of the
// bytes of the distances too.
#include "score.cuh"

// Grid: chunks of tokens, groups of QUERIES of the G L queries of a KV head, B H_kv.
// query (B, H, L, parts * P); planes (2, B, H_kv, T, 8, P, 8), strides in words. Sequence b has
// lengths[b] tokens, at most `length`, or `length` tokens where lengths is null.
template <int PLANES, int P, int QUERIES>
__global__ void __launch_bounds__(256) score(
    const Word* query, Int parts, const Word* planes, Int planes_plane, Int planes_batch,
    Int planes_head, const int* lengths, Int length, Int H_kv, Int G, Int L, Int S,
    unsigned short* distances) {
  alignas(16) __shared__ unsigned queries[QUERIES * PLANES * 2 * P];
  const int b = blockIdx.z / H_kv, head = blockIdx.z % H_kv;
  const int rows = G * L, first_row = blockIdx.y * QUERIES;
  const int count = min(rows - first_row, QUERIES);
  const Int row = static_cast<Int>(blockIdx.z) * rows + first_row;
  load_queries<PLANES, P, QUERIES>(queries, query + row * parts * P, parts, count);
  __syncthreads();

  const int n = lengths ? min(static_cast<Int>(lengths[b]), length) : length;
  const int tiles = (S + TILE - 1) / TILE;
  const int chunk = (tiles + gridDim.x - 1) / gridDim.x;
  const int first = blockIdx.x * chunk;
  unsigned short* const out = distances + row * S;
  const Word* const high = planes + b * planes_batch + head * planes_head;
  score_tiles<PLANES, P, QUERIES>(
      high, high + planes_plane, first, min(first + chunk, tiles), queries, count,
      [&](int q, int token, int distance) {
        if (token < S) {
          const bool seen = token < visible_tokens(n, (first_row + q) % L, L);
          out[q * S + token] = seen ? distance : INVISIBLE;
        }
      });
}
