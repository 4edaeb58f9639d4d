// Codes of keys and bit planes of queries, a warp a row: from transformed rows, and fused with the
// transform from raw ones. Bound by the bytes read; the codes are a sixteenth of a float32 row.
//
// Built without contraction into fused multiply-adds and with subnormal numbers kept.
#include "rows.cuh"

// Rows (rows, 2 P) of codes of transformed x (batch, heads, tokens, Dt). Head h has its thresholds
// at thresholds + h * t_head; t_head is 0 where all share them.
template <int N>
__global__ void quantize(
    const float* x, Int x_batch, Int x_head, Int x_token, Int heads, Int tokens, Int rows, Int Dt,
    const float* thresholds, Int t_head, Word* codes) {
  const Int row = warp_index();
  if (row >= rows) return;
  const Place at = place_of(row, heads, tokens);
  float v[N];
  load_row(v, x + at.batch * x_batch + at.head * x_head + at.token * x_token, Dt);
  Word* const high = codes + row * 2 * words<N>();
  write_codes(v, Dt, thresholds + at.head * t_head, high, high + words<N>(), 1);
}

// Rows (rows, bits * P) of the weighted metric's planes of transformed x (batch, heads, tokens, Dt).
template <int N>
__global__ void quantize_query(
    const float* x, Int x_batch, Int x_head, Int x_token, Int heads, Int tokens, Int rows, Int Dt,
    Int bits, Word* planes) {
  const Int row = warp_index();
  if (row >= rows) return;
  const Place at = place_of(row, heads, tokens);
  float v[N];
  load_row(v, x + at.batch * x_batch + at.head * x_head + at.token * x_token, Dt);
  write_query(v, Dt, static_cast<int>(bits), planes + row * bits * words<N>());
}

// Raw queries and raw keys in one launch: the first q_rows warps take a query each, the others a
// key. Either part may be empty.
//
// q (B, H, L, D) becomes `query`, rows (q_rows, bits * P) of the weighted metric's planes, or with
// bits = 0 rows (q_rows, 2 P) of codes.
//
// k (B, H_kv, S, D) becomes tokens start[b] + s (first + s where start is null) of `planes`, whose
// tiles (T, 8, P, 8) of one plane, sequence and head are contiguous: word p of a token stands at
// (token / 8 * P + p) * 8 + token % 8. The low plane lies p_plane words behind the high one.
// Warps of neighbouring tokens write into the same 64-byte lines, which meet in the L2 cache.
// A token outside 0 to capacity - 1 is not written: the host does not know start.
template <typename T, int N>
__global__ void encode(
    const T* q, Int q_batch, Int q_head, Int q_token, Int H, Int L, Int q_rows, Int bits,
    Word* query,
    const T* k, Int k_batch, Int k_head, Int k_token, Int H_kv, Int S, Int k_rows,
    Word* planes, Int p_plane, Int p_batch, Int p_head, Int capacity, const int* start, Int first,
    const float* thresholds, Int t_head, Int D, Int Dt, float scale) {
  constexpr int P = words<N>();
  Int row = warp_index();
  float v[N];
  if (row < q_rows) {
    const Place at = place_of(row, H, L);
    load_row(v, q + at.batch * q_batch + at.head * q_head + at.token * q_token, D);
    transform(v, Dt, scale);
    if (bits > 0) {
      write_query(v, Dt, static_cast<int>(bits), query + row * bits * P);
    } else {
      const Int kv_head = at.head / (H / H_kv);
      Word* const high = query + row * 2 * P;
      write_codes(v, Dt, thresholds + kv_head * t_head, high, high + P, 1);
    }
    return;
  }
  row -= q_rows;
  if (row >= k_rows) return;
  const Place at = place_of(row, H_kv, S);
  const Int token = (start != nullptr ? start[at.batch] : first) + at.token;
  if (token < 0 || token >= capacity) return;
  load_row(v, k + at.batch * k_batch + at.head * k_head + at.token * k_token, D);
  transform(v, Dt, scale);
  Word* const high =
      planes + at.batch * p_batch + at.head * p_head + token / 8 * (P * 8) + token % 8;
  write_codes(v, Dt, thresholds + at.head * t_head, high, high + p_plane, 8);
}
