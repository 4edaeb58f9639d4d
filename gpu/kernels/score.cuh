// Distances of coded keys to one or several queries of their KV head.
//
// For one query per KV head the time is that of the bytes: 16 P per token, which is 2 clocks at
// P = 2 on an H100 (3.35 TB/s over 132 multiprocessors are 15 bytes per clock each). A weighted
// query of 4 bits at P = 2 needs 24 POPC per token, 1.5 clocks at 16 per clock. With the adders of
// `count_bits` it needs 14, 0.9 clocks. For two and more queries the codes are expanded to bytes
// once, and tensor cores compute the sums. The expansion takes 72 operations per token, 1.1 clocks
// at 64 per clock.
#pragma once
#include "common.cuh"

constexpr unsigned short INVISIBLE = 65535;  // the distance of a token that a query does not see
constexpr int MANHATTAN = 2;                 // PLANES of the metric without weights

// The highest level of a row is stored as level + LEVEL_BIAS, so that 0 is below all levels.
constexpr int LEVEL_BIAS = 32769;

// The largest distance: a weight of PLANES - 1 bits, 3 for the codes, 64 coordinates per word.
template <int PLANES, int P>
constexpr int LARGEST = ((1 << (PLANES - 1)) - 1) * 3 * 64 * P;

// How many of `length` tokens query l of L sees: the last query sees all, the one before it one
// less.
__device__ __forceinline__ int visible_tokens(int length, int l, int L) {
  return max(length - (L - 1 - l), 0);
}

// The number of bits set in N words. An adder turns three words into their sum and a carry of twice
// the weight. It takes two LOP3 and saves one POPC; per clock 64 LOP3 issue, but only 16 POPC.
template <int N>
__device__ __forceinline__ int count_bits(const unsigned (&words)[N]) {
  if constexpr (N == 1) {
    return __popc(words[0]);
  } else if constexpr (N == 2) {
    return __popc(words[0]) + __popc(words[1]);
  } else {
    constexpr int CARRIES = (N - 1) / 2;
    unsigned sum = words[0];
    unsigned carries[CARRIES];
#pragma unroll
    for (int i = 0; i < CARRIES; ++i) {
      const unsigned a = words[2 * i + 1], b = words[2 * i + 2];
      carries[i] = (sum & a) | (sum & b) | (a & b);
      sum = sum ^ a ^ b;
    }
    int total = __popc(sum) + 2 * count_bits(carries);
    if constexpr (N % 2 == 0) total += __popc(words[N - 1]);
    return total;
  }
}

// The distance over N 32-bit words of each plane. `query` points to the first of these words in
// the first plane of the query; its planes are `plane` words apart.
//
// With PLANES == MANHATTAN the query has the two planes of its codes. Otherwise it has a plane of
// signs e and PLANES - 1 planes of weights w_b, and the distance is the sum over b of
// 2^b (2 popc(w_b & (high ^ e)) + popc(w_b & (low ^ e))), from the largest power of two down. The
// terms of the high plane for b and of the low plane for b + 1 have the same power of two. The
// distance is at most 21 Dt = 43008 for 4 bits, and always below 65535; the callers check that.
template <int PLANES, int N>
__device__ __forceinline__ int distance_of_words(
  const unsigned (&high)[N], const unsigned (&low)[N], const unsigned* query, int plane
) {
  if constexpr (PLANES == MANHATTAN) {
    unsigned small[N], large[N];
#pragma unroll
    for (int i = 0; i < N; ++i) {
      const unsigned q_high = query[i], q_low = query[plane + i];
      small[i] = low[i] ^ q_low;
      large[i] = (high[i] ^ q_high) & ~(small[i] & (q_high ^ q_low));
    }
    return count_bits(small) + 2 * count_bits(large);
  } else {
    unsigned to_high[N], to_low[N];  // planes of |c - e|
    unsigned one[N];
#pragma unroll
    for (int i = 0; i < N; ++i) {
      to_high[i] = high[i] ^ query[i];
      to_low[i] = low[i] ^ query[i];
      one[i] = to_high[i] & query[plane + i];
    }
    int total = count_bits(one);
#pragma unroll
    for (int b = 1; b < PLANES - 1; ++b) {
      unsigned two[2 * N];
#pragma unroll
      for (int i = 0; i < N; ++i) {
        two[i] = to_low[i] & query[b * plane + i];
        two[N + i] = to_high[i] & query[(b + 1) * plane + i];
      }
      total = 2 * total + count_bits(two);
    }
#pragma unroll
    for (int i = 0; i < N; ++i) one[i] = to_low[i] & query[(PLANES - 1) * plane + i];
    return 2 * total + count_bits(one);
  }
}

// Distances of the tiles [first, last) of one KV head to `count` queries. Each query has
// PLANES * 2P words of 32 bits, and the queries are adjacent in shared memory. The warps of the
// block take the tiles in turn. store(query, token, distance) gets every token of a tile, and must
// decide which tokens a query sees.
//
// A lane holds the tokens 2 * lane and 2 * lane + 1 of the tile. One load of 16 bytes brings a word
// of both, and the loads of a warp cover whole lines.
template <int PLANES, int P, int QUERIES, typename Store>
__device__ __forceinline__ void score_by_counting(
    const Word* high_plane, const Word* low_plane, int first, int last, const unsigned* queries,
    int count, Store store) {
  constexpr int TOGETHER = P < 4 ? P : 4;  // words whose bits are counted together
  static_assert(P % TOGETHER == 0 && (P == TOGETHER || QUERIES == 1), "one sum per token");
  const int lane = lane_index();
  for (int tile = first + threadIdx.x / LANES; tile < last; tile += blockDim.x / LANES) {
    const Int at = (8LL * tile + lane / 4) * (4 * P) + lane % 4;
    const uint4* const high_words = reinterpret_cast<const uint4*>(high_plane) + at;
    const uint4* const low_words = reinterpret_cast<const uint4*>(low_plane) + at;
    const int token = TILE * tile + 2 * lane;
    int even = 0, odd = 0;
#pragma unroll 1
    for (int p = 0; p < P; p += TOGETHER) {
      unsigned high[2][2 * TOGETHER], low[2][2 * TOGETHER];  // of the two tokens
#pragma unroll
      for (int i = 0; i < TOGETHER; ++i) {
        const uint4 h = high_words[4 * (p + i)], l = low_words[4 * (p + i)];
        high[0][2 * i] = h.x, high[0][2 * i + 1] = h.y;
        high[1][2 * i] = h.z, high[1][2 * i + 1] = h.w;
        low[0][2 * i] = l.x, low[0][2 * i + 1] = l.y;
        low[1][2 * i] = l.z, low[1][2 * i + 1] = l.w;
      }
#pragma unroll 1
      for (int q = 0; q < (QUERIES == 1 ? 1 : count); ++q) {
        const unsigned* const query = queries + q * PLANES * 2 * P + 2 * p;
        even += distance_of_words<PLANES>(high[0], low[0], query, 2 * P);
        odd += distance_of_words<PLANES>(high[1], low[1], query, 2 * P);
        if (P == TOGETHER) {
          store(q, token, even);
          store(q, token + 1, odd);
          even = odd = 0;
        }
      }
    }
    if (P > TOGETHER) {
      store(0, token, even);
      store(0, token + 1, odd);
    }
  }
}

// d += a b on tensor cores: a has 16 x 32 unsigned bytes, b 32 x 8 signed bytes. With g = lane / 4
// and t = lane % 4, a lane holds these parts:
// - a: row g (a[0], a[2]) and row g + 8 (a[1], a[3]);
// - b: column g;
// - both: the bytes 4 t to 4 t + 3 of the first and of the second 16 of the 32;
// - d: row g (d[0], d[1]) and row g + 8 (d[2], d[3]), columns 2 t and 2 t + 1.
#ifdef ON_CPU
#define multiply_bytes(d, a, b) shim::multiply_bytes(__LINE__, d, a, b)
#else
__device__ __forceinline__ void multiply_bytes(
    int (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k32.row.col.s32.u8.s8.s32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
#endif

// The distances of score_by_counting, for the weighted metric and 8 queries at once:
// sum of w |c - e| = 3 (sum of w where e = 3) + sum of s c, where s = -w if e = 3 and w otherwise.
// |sum of s c| <= 127 * 3 * 256.
//
// The 32 bytes of a row of the product may stand for any coordinates, as long as a and b agree. So
// each lane expands its own words. The four lanes of a row share its P words, 32 bits at a time. At
// P = 1 two lanes share 32 bits: one takes the even coordinates, the other the odd ones. Byte j of
// register r holds the code of coordinate 8 j + r; at P = 1, of 8 j + 2 r for the even and of
// 8 j + 2 r + 1 for the odd coordinates.
template <int PLANES, int P, typename Store>
__device__ __forceinline__ void score_by_products(
    const Word* high_plane, const Word* low_plane, int first, int last, const unsigned* queries,
    int count, Store store) {
  static_assert(P == 1 || P == 2 || P == 4, "the bytes of the query stay in registers");
  constexpr int WORDS = P == 1 ? 1 : P / 2;  // 32-bit words per plane and row that a lane takes
  constexpr int BYTES = P == 1 ? 4 : 8;      // registers of expanded codes per word
  constexpr int APART = 8 / BYTES;           // coordinates from one register to the next
  constexpr unsigned EACH = 0x01010101, TOP = 0x80808080;
  const int lane = lane_index(), g = lane / 4, t = lane % 4;
  const int offset = P == 1 ? t / 2 : 0;
  const auto word_of = [&](int i) { return P == 1 ? t % 2 : 4 * i + t; };

  // Queries from `count` on are 0 in shared memory; see load_queries.
  unsigned signed_weights[WORDS][BYTES];
#pragma unroll
  for (int i = 0; i < WORDS; ++i) {
    const unsigned* const word = queries + g * PLANES * 2 * P + word_of(i);
#pragma unroll
    for (int r = 0; r < BYTES; ++r) {
      const int bit = offset + APART * r;
      const unsigned up = (word[0] >> bit & EACH) * 0xff;
      unsigned weight = 0;
#pragma unroll
      for (int b = 1; b < PLANES; ++b) weight = 2 * weight + (word[b * 2 * P] >> bit & EACH);
      // 0x80 - w with the top bit flipped is -w, and no byte borrows from another.
      const unsigned negative = (TOP - weight) ^ TOP;
      signed_weights[i][r] = (weight & ~up) | (negative & up);
    }
  }
  int base[2] = {};  // 3 times the sum of w where e = 3, of the queries 2 t and 2 t + 1
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const unsigned* const query = queries + (2 * t + half) * PLANES * 2 * P;
#pragma unroll 1
    for (int i = 0; i < 2 * P; ++i) {
      int weight = 0;
#pragma unroll
      for (int b = 1; b < PLANES; ++b) {
        weight = 2 * weight + __popc(query[i] & query[b * 2 * P + i]);
      }
      base[half] += 3 * weight;
    }
  }

  const unsigned* const high_words = reinterpret_cast<const unsigned*>(high_plane);
  const unsigned* const low_words = reinterpret_cast<const unsigned*>(low_plane);
  for (int tile = first + threadIdx.x / LANES; tile < last; tile += blockDim.x / LANES) {
#pragma unroll(P < 4 ? 4 : 2)
    for (int rows = 0; rows < TILE; rows += 16) {
      int sums[4] = {base[0], base[1], base[0], base[1]};
#pragma unroll
      for (int i = 0; i < WORDS; ++i) {
        unsigned codes[2][BYTES];  // of the tokens g and g + 8
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const Int group = 8LL * tile + rows / 8 + half;
          const int word = word_of(i);
          const Int at = group * (16 * P) + word / 2 * 16 + 2 * g + word % 2;
          const unsigned high = high_words[at], low = low_words[at];
          // Codes of 2 bits next to each other: of the even and of the odd coordinates.
          const unsigned even = (high << 1 & 0xaaaaaaaa) | (low & 0x55555555);
          const unsigned odd = (high & 0xaaaaaaaa) | (low >> 1 & 0x55555555);
#pragma unroll
          for (int r = 0; r < BYTES; ++r) {
            const int bit = APART * r;  // of the even coordinate
            const bool takes_odd = P == 1 ? offset == 1 : r % 2 == 1;
            codes[half][r] = (takes_odd ? odd : even) >> (bit - bit % 2) & 3 * EACH;
          }
        }
#pragma unroll
        for (int r = 0; r < BYTES; r += 2) {
          const unsigned a[4] = {codes[0][r], codes[1][r], codes[0][r + 1], codes[1][r + 1]};
          const unsigned b[2] = {signed_weights[i][r], signed_weights[i][r + 1]};
          multiply_bytes(sums, a, b);
        }
      }
      const int token = TILE * tile + rows + g;
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        if (2 * t + half < count) {
          store(2 * t + half, token, sums[half]);
          store(2 * t + half, token + 8, sums[2 + half]);
        }
      }
    }
  }
}

// The faster of the two. For a single query that is counting, because no other query would share
// the expansion.
template <int PLANES, int P, int QUERIES, typename Store>
__device__ __forceinline__ void score_tiles(
    const Word* high, const Word* low, int first, int last, const unsigned* queries, int count,
    Store store) {
  if constexpr (PLANES != MANHATTAN && QUERIES == 8) {
    score_by_products<PLANES, P>(high, low, first, last, queries, count, store);
  } else {
    score_by_counting<PLANES, P, QUERIES>(high, low, first, last, queries, count, store);
  }
}

// Copies `count` queries of `parts` planes each into shared memory, as QUERIES queries of PLANES
// planes. A query of fewer bits gets weight planes of zeros after its signs. Missing queries are 0.
template <int PLANES, int P, int QUERIES>
__device__ __forceinline__ void load_queries(
    unsigned* shared, const Word* query, int parts, int count) {
  constexpr int PLANE = 2 * P;
  const unsigned* const words = reinterpret_cast<const unsigned*>(query);
  for (int i = threadIdx.x; i < QUERIES * PLANES * PLANE; i += blockDim.x) {
    const int q = i / (PLANES * PLANE), plane = i / PLANE % PLANES;
    const int part = plane == 0 ? 0 : plane - (PLANES - parts);
    const bool there = q < count && (plane == 0 || part > 0);
    shared[i] = there ? words[(q * parts + part) * PLANE + i % PLANE] : 0;
  }
}
