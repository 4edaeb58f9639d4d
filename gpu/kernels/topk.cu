// topk_chunks, merge_candidates: the tokens with the smallest distances, exactly, in ascending
// order.
//
// The time is that of the distances' bytes, of 16 or 32 bits (T), which are read once: a block
// holds its chunk of a row in shared memory and selects there. The second kernel selects from the
// selections of the chunks.
#include "topk.cuh"

// Grid: rows, chunks. distances (rows, S). Dynamic shared memory: one chunk of `size` distances.
template <typename T>
__global__ void __launch_bounds__(256) topk_chunks(
    const T* distances, Int S, Int size, Int K, Int sinks, Int recent, T* candidate_distances,
    int* candidate_tokens, Int slots, int* indices) {
  DYN_SHARED(T, chunk);
  __shared__ SelectionScratch scratch;
  const Int row = blockIdx.x, start = blockIdx.y * size;
  const int n = max(min(size, S - start), Int{0});
  for (int i = threadIdx.x; i < n; i += blockDim.x) chunk[i] = distances[row * S + start + i];
  __syncthreads();
  const Candidates<T> out{
      candidate_distances, candidate_tokens, indices, static_cast<int>(gridDim.y),
      static_cast<int>(slots)};
  const Team team = whole_block();
  select_from_chunk<Known::NOTHING>(
      chunk, n, start, row, blockIdx.y, K, sinks, recent, team, scratch,
      spread_of_runs(chunk, n, team, AsStored<T>{chunk}), out, true);
}

// Grid: rows. Selects from the n candidates of each row into indices (rows, K). Dynamic shared
// memory: in_shared distances. That is n, or 0 where they are too many and stay in global memory.
template <typename T>
__global__ void __launch_bounds__(512, 1) merge_candidates(
    const T* candidate_distances, const int* candidate_tokens, Int n, Int in_shared, Int K,
    Int sinks, Int recent, int* indices) {
  DYN_SHARED(T, shared);
  __shared__ SelectionScratch scratch;
  const Int row = blockIdx.x;
  const T* distances = candidate_distances + row * n;
  const int* const tokens = candidate_tokens + row * n;
  int* const out = indices + row * K;
  if (in_shared == n) {
    for (int i = threadIdx.x; i < n; i += blockDim.x) shared[i] = distances[i];
    distances = shared;
  }
  __syncthreads();
  const int taken = select_nearest(
      distances, n, K, sinks, recent, scratch, AsStored<T>{distances},
      [&](int at, int i, unsigned) { out[at] = tokens[i]; });
  for (int i = taken + threadIdx.x; i < K; i += blockDim.x) out[i] = -1;
}
