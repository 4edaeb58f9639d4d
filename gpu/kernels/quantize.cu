// quantize, quantize_query: codes of keys and bit planes of queries, from transformed rows.
// encode: the same from raw rows, in one launch with the transform.
//
// A warp takes one row. The time is that of the bytes read: the codes have a sixteenth of the bytes
// of a float32 row.
//
// These kernels are compiled without fused multiply-adds, and subnormal numbers are kept.
#include "warp_row.cuh"

// x (batch, heads, tokens, Dt) is transformed; codes (rows, 2 P). The thresholds of head h start at
// thresholds + h * thresholds_head, where thresholds_head is 0 if all heads share them.
template <int N>
__global__ void quantize(
    const float* x, Int x_batch, Int x_head, Int x_token, Int heads, Int tokens, Int rows, Int Dt,
    const float* thresholds, Int thresholds_head, Word* codes) {
  const Int row = warp_index();
  if (row >= rows) return;
  const Place at = place_of(row, heads, tokens);
  float v[N];
  load_row(v, x + at.batch * x_batch + at.head * x_head + at.token * x_token, Dt);
  Word* const high = codes + row * 2 * words<N>();
  write_codes(v, Dt, thresholds + at.head * thresholds_head, high, high + words<N>(), 1);
}

// x (batch, heads, tokens, Dt) is transformed; query (rows, bits * P) has the planes of the
// weighted metric.
template <int N>
__global__ void quantize_query(
    const float* x, Int x_batch, Int x_head, Int x_token, Int heads, Int tokens, Int rows, Int Dt,
    Int bits, Word* query) {
  const Int row = warp_index();
  if (row >= rows) return;
  const Place at = place_of(row, heads, tokens);
  float v[N];
  load_row(v, x + at.batch * x_batch + at.head * x_head + at.token * x_token, Dt);
  write_query(v, Dt, static_cast<int>(bits), query + row * bits * words<N>());
}

// Raw queries and raw keys in one launch. The first q_rows warps take one query each, the next
// k_rows warps one key each. Either number may be 0.
//
// q (B, H, L, D) becomes `query`: (q_rows, bits * P), planes of the weighted metric, or
// (q_rows, 2 P), codes, where bits is 0. The transformed queries go to x (q_rows, Dt), unless it is
// null.
//
// k (B, H_kv, S, D) becomes the tokens start[b] + s of `planes`, or first + s where start is null.
// planes (2, B, H_kv, T, 8, P, 8): the tiles of one plane, sequence and head are contiguous, so
// word p of a token has the offset (token / 8 * P + p) * 8 + token % 8. The low plane begins
// planes_plane words after the high plane. Warps of neighbouring tokens write into the same lines
// of 64 bytes; the L2 cache joins these writes. A token outside 0 to capacity - 1 is not written,
// because the host does not know `start`.
template <typename T, int N>
__global__ void encode(
    const T* q, Int q_batch, Int q_head, Int q_token, Int H, Int L, Int q_rows, Int bits,
    Word* query, float* x,
    const T* k, Int k_batch, Int k_head, Int k_token, Int H_kv, Int S, Int k_rows,
    Word* planes, Int planes_plane, Int planes_batch, Int planes_head, Int capacity,
    const int* start, Int first, const float* thresholds, Int thresholds_head, Int D, Int Dt,
    float hadamard_scale) {
  constexpr int P = words<N>();
  Int row = warp_index();
  float v[N];
  if (row < q_rows) {
    const Place at = place_of(row, H, L);
    load_row(v, q + at.batch * q_batch + at.head * q_head + at.token * q_token, D);
    transform(v, Dt, hadamard_scale);
    if (x) store_row(v, x + row * Dt, Dt);
    if (bits > 0) {
      write_query(v, Dt, static_cast<int>(bits), query + row * bits * P);
    } else {
      const Int kv_head = at.head / (H / H_kv);
      Word* const high = query + row * 2 * P;
      write_codes(v, Dt, thresholds + kv_head * thresholds_head, high, high + P, 1);
    }
    return;
  }
  row -= q_rows;
  if (row >= k_rows) return;
  const Place at = place_of(row, H_kv, S);
  const Int token = (start != nullptr ? start[at.batch] : first) + at.token;
  if (token < 0 || token >= capacity) return;
  load_row(v, k + at.batch * k_batch + at.head * k_head + at.token * k_token, D);
  transform(v, Dt, hadamard_scale);
  Word* const high =
      planes + at.batch * planes_batch + at.head * planes_head + token / 8 * (P * 8) + token % 8;
  write_codes(v, Dt, thresholds + at.head * thresholds_head, high, high + planes_plane, 8);
}
