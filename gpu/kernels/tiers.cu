// choose_tiers, divide: from the candidates of a tail's chunks to the tokens of its tiers.
//
// Two bits have found the candidates of each chunk. Of a row's candidates, the best by two bits are
// its list. Three bits rank the list. The best ones are the exact tier, the next ones the coded tier.
// All others join the rest, whose weights the chunks have begun to add up.
//
// The time is that of the selections by one block, and the latency of scattered words: per token of
// the list 2 P words of its planes, P of its third bits, and a scale.
#include "tail.cuh"

// A row's list: tokens in ascending order, ranks by three bits, and logits by two bits.
struct List {
  int* tokens;
  unsigned* ranks;
  float* logits;
  int count;
};

// What turns ranks of the list into logits.
struct Noise {
  const unsigned char* finer;  // scales of three bits, of a head
  float scale, noise;          // as for logit_of, for three bits
  float soft_cap;              // 0: none
};

// Divides the list of a row into the exact tier, unless it is `given` in indices (K,); the coded tier,
// coded and logits (M,); and the rest, which joins `others`. Ranks of both tiers become NOT_THERE. The
// whole block must call it. Returns the rest in thread 0.
__device__ __forceinline__ Mass divide_list(
    const List& list, const Noise& at, int K, int sinks, int recent, bool given, int M, int* indices,
    int* coded, float* logits, Mass others, SelectionScratch& scratch, Mass* parts) {
  const AsStored<unsigned> ranks{list.ranks};
  if (given) {
    for (int i = threadIdx.x; i < list.count; i += blockDim.x) {
      // Unused places hold -1, which as an unsigned number comes last.
      const unsigned token = list.tokens[i];
      int first = 0, end = K;
      while (first < end) {
        const int middle = (first + end) / 2;
        if (static_cast<unsigned>(indices[middle]) < token) {
          first = middle + 1;
        } else {
          end = middle;
        }
      }
      if (first < K && static_cast<unsigned>(indices[first]) == token) {
        list.ranks[i] = NOT_THERE<unsigned>;
      }
    }
    __syncthreads();
  } else {
    const int taken = select_nearest(
        list.ranks, list.count, K, sinks, recent, scratch, ranks, [&](int to, int i, unsigned) {
          indices[to] = list.tokens[i];
          list.ranks[i] = NOT_THERE<unsigned>;
        });
    for (int i = taken + threadIdx.x; i < K; i += blockDim.x) indices[i] = -1;
  }
  const int taken = select_nearest(
      list.ranks, list.count, M, 0, 0, scratch, ranks, [&](int to, int i, unsigned rank) {
        const int token = list.tokens[i];
        coded[to] = token;
        logits[to] = logit_of(number_of(rank), scale_of(at.finer[token]), at.scale, at.noise);
        list.ranks[i] = NOT_THERE<unsigned>;
      });
  for (int i = taken + threadIdx.x; i < M; i += blockDim.x) coded[i] = -1;
  cap_all(logits, taken, at.soft_cap);
  for (int i = threadIdx.x; i < list.count; i += blockDim.x) {
    if (list.ranks[i] != NOT_THERE<unsigned>) others.add(list.logits[i]);
  }
  return mass_of_block(others, parts);
}

// Three bits of a row's keys, and what an estimate from them needs.
struct ThreeBits {
  const Word *query, *planes, *bits;  // planes and bits of a head
  Int planes_plane;
  const unsigned char* finer;
  const float* products;  // with the means
  int parts, P, weights;  // of Units in select_centered.cu
  float half;             // of its unit

  // The rank of a token by three bits, as reference.estimate specifies it.
  __device__ unsigned rank(int token) const {
    const Word* const high = planes + token / 8 * (P * 8) + token % 8;
    const Word* const third = bits + static_cast<Int>(token) * P;
    int distance = 0, agree = 0;
    for (int p = 0; p < P; ++p) {
      const Word sign = query[p], upper = high[p * 8] ^ sign, lower = high[p * 8 + planes_plane] ^ sign;
      const Word same = ~(third[p] ^ sign);
      int far = 0, alike = 0;
      for (int b = 1; b < parts; ++b) {
        const Word w = query[b * P + p];
        far = 2 * far + 2 * __popcll(w & upper) + __popcll(w & lower);
        alike = 2 * alike + __popcll(w & same);
      }
      distance += far;
      agree += alike;
    }
    // 2 (3 W - 2 d) + 2 agree - W, below 2^20.
    const int n = 2 * (weights - 2 * distance) + 2 * agree - weights / 3;
    const float product = __fmul_rn(__fmul_rn(static_cast<float>(n), scale_of(finer[token])), half);
    return rank_of(__fadd_rn(product, products[token / TILE]));
  }
};

// Grid: rows of queries (B, H, L). candidate_distances (rows, n) are ranks by two bits, which become
// NOT_THERE where they are taken. Dynamic shared memory: in_shared ranks. That is n, or 0 where they
// are too many and stay in global memory.
//
// The list has the `sought` best candidates, with the first `sinks` and last `recent` tokens. It goes
// to list_tokens, list_ranks and list_logits (rows, sought), and its length to listed (rows,). Where
// `nearest` is null, the list is divided: indices (rows, K), coded and logits (rows, M), rest (rows, 2).
// Else nearest (rows, refined) gets the best of the list in ascending order, and `divide` does that
// later. Then rest is that of the candidates after the list. noise and fine_noise are for |x| = 1. All
// logits are capped, unless soft_cap is 0.
__global__ void __launch_bounds__(512, 1) choose_tiers(
    unsigned* candidate_distances, const int* candidate_tokens, Int n, Int in_shared, Int chunks,
    Int sought, Int refined, Int K, Int M, Int sinks, Int recent, const Word* query, Int parts,
    const Word* planes, Int planes_plane, Int planes_batch, Int planes_head, const Word* bits,
    Int bits_batch, Int bits_head, const unsigned char* finer, Int finer_batch, Int finer_head,
    const unsigned char* scales, Int scales_batch, Int scales_head, Int H, Int H_kv, Int L, Int P,
    float scale, float noise, float fine_noise, float soft_cap, const float* facts, const float* products, Int T,
    const float* rests, int* list_tokens, unsigned* list_ranks, float* list_logits, int* listed,
    int* nearest, int* indices, int* coded, float* logits, float* rest) {
  DYN_SHARED(unsigned, shared);
  __shared__ SelectionScratch scratch;
  __shared__ Mass parts_of_mass[MAX_WARPS];
  __shared__ Word planes_of_query[8 * 32];
  const Int row = blockIdx.x;
  const int h = row / L % H, b = row / (L * H), head = h / (H / H_kv);
  unsigned* ranks = candidate_distances + row * n;
  const int* const tokens = candidate_tokens + row * n;
  if (in_shared == n) {
    for (int i = threadIdx.x; i < n; i += blockDim.x) shared[i] = ranks[i];
    ranks = shared;
  }
  for (int i = threadIdx.x; i < parts * P; i += blockDim.x) {
    planes_of_query[i] = query[row * parts * P + i];
  }
  __syncthreads();
  finer += b * finer_batch + head * finer_head;
  scales += b * scales_batch + head * scales_head;
  facts += row * 3;
  const float own_noise = __fmul_rn(noise, facts[2]);
  List list{list_tokens + row * sought, list_ranks + row * sought, list_logits + row * sought, 0};

  list.count = select_nearest(
      ranks, n, sought, sinks, recent, scratch, AsStored<unsigned>{ranks},
      [&](int at, int i, unsigned rank) {
        const int token = tokens[i];
        list.tokens[at] = token;
        list.logits[at] = logit_of(number_of(rank), scale_of(scales[token]), scale, own_noise);
        ranks[i] = NOT_THERE<unsigned>;
      });
  Mass others = Mass::none();
  for (int i = threadIdx.x; i < chunks; i += blockDim.x) {
    const float* const part = rests + (row * chunks + i) * 2;
    others.add({part[0], part[1]});
  }
  others = add_capped(
      ranks, n, scale, own_noise, soft_cap, [&](int i) { return scale_of(scales[tokens[i]]); }, others);
  const ThreeBits three{
      planes_of_query, planes + b * planes_batch + head * planes_head,
      bits + b * bits_batch + head * bits_head, planes_plane, finer, products + row * T,
      static_cast<int>(parts), static_cast<int>(P), static_cast<int>(facts[1]),
      __fmul_rn(facts[0], 0.5f)};
  for (int i = threadIdx.x; i < list.count; i += blockDim.x) {
    list.ranks[i] = three.rank(list.tokens[i]);
  }
  cap_all(list.logits, list.count, soft_cap);
  if (threadIdx.x == 0) listed[row] = list.count;
  __syncthreads();
  if (nearest) {
    int* const best = nearest + row * refined;
    const int taken = select_nearest(
        list.ranks, list.count, refined, sinks, recent, scratch, AsStored<unsigned>{list.ranks},
        [&](int at, int i, unsigned) { best[at] = list.tokens[i]; });
    for (int i = taken + threadIdx.x; i < refined; i += blockDim.x) best[i] = -1;
    others = mass_of_block(others, parts_of_mass);
  } else {
    const Noise at{finer, scale, __fmul_rn(fine_noise, facts[2]), soft_cap};
    others = divide_list(
        list, at, K, sinks, recent, false, M, indices + row * K, coded + row * M, logits + row * M,
        others, scratch, parts_of_mass);
  }
  if (threadIdx.x == 0) {
    rest[row * 2] = others.top;
    rest[row * 2 + 1] = others.sum;
  }
}

// Grid: rows of queries. The list of choose_tiers, and the exact tier in indices (rows, K). The tokens
// of neither tier join rest (rows, 2).
__global__ void __launch_bounds__(512, 1) divide(
    int* list_tokens, unsigned* list_ranks, float* list_logits, const int* listed, Int sought, Int K,
    Int M, const unsigned char* finer, Int finer_batch, Int finer_head, Int H, Int H_kv, Int L,
    float scale, float fine_noise, float soft_cap, const float* facts, int* indices, int* coded, float* logits,
    float* rest) {
  __shared__ SelectionScratch scratch;
  __shared__ Mass parts_of_mass[MAX_WARPS];
  const Int row = blockIdx.x;
  const int h = row / L % H, b = row / (L * H), head = h / (H / H_kv);
  const List list{
      list_tokens + row * sought, list_ranks + row * sought, list_logits + row * sought, listed[row]};
  const Noise at{
      finer + b * finer_batch + head * finer_head, scale, __fmul_rn(fine_noise, facts[row * 3 + 2]),
      soft_cap};
  Mass others = divide_list(
      list, at, K, 0, 0, true, M, indices + row * K, coded + row * M, logits + row * M, Mass::none(),
      scratch, parts_of_mass);
  if (threadIdx.x == 0) {
    others.add({rest[row * 2], rest[row * 2 + 1]});
    rest[row * 2] = others.top;
    rest[row * 2 + 1] = others.sum;
  }
}
