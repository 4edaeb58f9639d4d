/* libadamas: sparse attention over 2-bit codes of keys, for C and for whatever calls C.

   The library needs no Python. It runs on the widest instructions of the processor: ADAMAS_ISA names
   a smaller level, as adamas_level() spells it. Its threads are its own. They survive a fork, and
   any number of threads may call at once.

   Shapes: B sequences, H query heads, H_kv heads of keys and values, L queries per sequence, D
   coordinates of a query or key, Dv of a value. G = H / H_kv query heads share a head of keys. S
   tokens, T tiles of 64 tokens. Dt is D rounded up to a power of two, and P = ceil(Dt / 64).

   Logits are x = scale q.k. With a soft cap c > 0 a logit becomes c tanh(x / c). A sink is a logit of
   a query head that counts in the denominator of the softmax, and in lse, but has no value. Of parts
   that are merged afterwards, one alone may have the sinks.

   Arrays are given by their first element and their strides in bytes. The last axis of each is
   contiguous. Strides that are all 0 stand for an array without gaps. Nothing is kept after a call.

   Every function that can fail returns ADAMAS_OK or an error, which adamas_error() explains. A call
   that fails for its arguments has written nothing.

   A struct begins with its size, which the caller sets to sizeof. Later versions add fields at the
   end, where 0 means the behaviour before. So a program runs with a newer library: fields after its
   size are 0. A size that no version has had is an error. */
#ifndef ADAMAS_H
#define ADAMAS_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#if defined(__GNUC__)
#define ADAMAS_API __attribute__((visibility("default")))
#else
#define ADAMAS_API
#endif

/* The version of this header's structs and functions. It rises when a program has to be compiled
   again, and only then. */
#define ADAMAS_ABI 1

typedef enum adamas_status {
  ADAMAS_OK = 0,
  ADAMAS_ERROR_ARGUMENT = -1,  /* a pointer that is needed is NULL */
  ADAMAS_ERROR_SIZE = -2,      /* the size of a struct is not one of this library */
  ADAMAS_ERROR_SHAPE = -3,     /* a length of an axis is out of range, or two do not fit */
  ADAMAS_ERROR_DTYPE = -4,     /* a dtype is none of adamas_dtype */
  ADAMAS_ERROR_LENGTH = -5,    /* a number of tokens is negative, or above the room for them */
  ADAMAS_ERROR_BUDGET = -6,    /* the budget is below 1, or below sinks + recent */
  ADAMAS_ERROR_OPTION = -7,    /* an option is out of range, or two cannot be combined */
  ADAMAS_ERROR_INDEX = -8,     /* an index of a token is out of range */
  ADAMAS_ERROR_MEMORY = -9,    /* no memory */
  ADAMAS_ERROR_WORKSPACE = -10 /* the workspace is too small */
} adamas_status;

typedef enum adamas_dtype { ADAMAS_FLOAT32 = 0, ADAMAS_FLOAT16 = 1, ADAMAS_BFLOAT16 = 2 } adamas_dtype;

/* An array (B, heads, tokens, D). */
typedef struct adamas_rows {
  void *data;
  int64_t stride_b, stride_h, stride_token;
} adamas_rows;

/* An array (B, H_kv, ...), of which all axes but the first two have no gaps. */
typedef struct adamas_heads {
  void *data;
  int64_t stride_b, stride_h;
} adamas_heads;

/* The codes of keys. A caller allocates them, fills them with zeros once, and lets
   adamas_append_keys write them. */
typedef struct adamas_keys {
  size_t size;
  int64_t B, H_kv, T, D;
  adamas_heads planes;     /* uint64 (B, H_kv, T, 8, P, 8): the high bits of the codes */
  int64_t to_low;          /* bytes from there to the low bits; 0: they follow all high bits */
  const float *thresholds; /* (H_kv, 3) */
  /* Centered codes have all of these. Plain ones have NULL. */
  adamas_heads means;     /* float16 (B, H_kv, T, Dt) */
  adamas_heads scales;    /* uint8 (B, H_kv, T, 64) */
  adamas_heads open_tile; /* float32 (B, H_kv, 64, Dt) */
  /* A third bit, which centered codes need for a tail. NULL without it. */
  adamas_heads third;        /* uint64 (B, H_kv, T, 64, P) */
  adamas_heads third_scales; /* uint8 (B, H_kv, T, 64) */
} adamas_keys;

/* The codes of values, which only a tail needs. D is the Dv of a step here. The code of a value is
   relative to a base: the first value of the sequence for the first 64 tokens, and the mean of these
   64 for all others. */
typedef struct adamas_values {
  size_t size;
  int64_t B, H_kv, T, D;
  adamas_heads codes;  /* uint64 (B, H_kv, T, 64, 2, P) */
  adamas_heads scales; /* uint8 (B, H_kv, T, 64) */
  adamas_heads bases;  /* float32 (B, H_kv, 2, D): the first value, and the mean of the first 64; 0
                          where there are fewer values, or where it is not finite */
  float *total;        /* (B, H_kv, D): the sums of all values */
  /* float32 (B, H_kv, 2, D): the sums of full tiles, and of the tile in progress. With them
     adamas_append_values writes bases and total. Where it is NULL, the caller has to, before each
     append, and for the sequence with its new tokens. */
  adamas_heads sums;
} adamas_values;

/* How tokens are selected. All 0 is the paper's selection. */
typedef struct adamas_selection {
  size_t size;
  int query_bits;        /* 2 to 8: the weighted metric, of which 4 is usual; 0: Manhattan */
  int64_t budget;        /* tokens per query, at least 1 */
  int64_t sinks, recent; /* first and newest tokens, which are always taken */
  int64_t refine;        /* rank refine * budget tokens again by their keys; 0: by codes alone */
  int group;             /* 1: the query heads of a head of keys choose together */
  int64_t tail;          /* tokens that count by their codes; 0: none, and no rest */
} adamas_selection;

/* One decode step: select, and attend. */
typedef struct adamas_step {
  size_t size;
  int64_t H, L;
  const adamas_keys *keys;
  const adamas_values *values; /* NULL without a tail */
  const adamas_selection *selection;
  const int64_t *lengths; /* (B,): tokens of each sequence. The queries are the last L of them. */
  int q_dtype, kv_dtype;
  adamas_rows q;    /* (B, H, L, D) */
  adamas_rows k, v; /* (B, H_kv, S, D) and (B, H_kv, S, Dv); NULL where only indices are asked for.
                       refine needs k. */
  int64_t S;        /* the room of k and v, at least the largest length */
  double scale;     /* of logits; 0: D ** -0.5 */
  int32_t *indices; /* (B, H, L, budget), ascending, -1 after the last; NULL: not wanted */
  void *out;        /* (B, H, L, Dv) of q_dtype, without gaps; NULL: select alone */
  float *lse;       /* (B, H, L); needed with out */
  int threads;      /* at most; 0: as many as adamas_threads() says */
  void *workspace;  /* memory for this call; NULL: the call allocates it */
  size_t workspace_bytes;
  int64_t Dv;               /* coordinates of a value; 0: D */
  double soft_cap;          /* of logits; 0: none */
  const float *sink_logits; /* (H,), -inf for none; NULL: no sinks */
} adamas_step;

/* Attention over given tokens, or over all tokens that a query sees. */
typedef struct adamas_attention {
  size_t size;
  int64_t B, H, H_kv, L, S, D; /* with indices == NULL the queries are the last L of S tokens */
  int q_dtype, kv_dtype;
  adamas_rows q, k, v;
  const int32_t *indices; /* (B, H, L, K), negative ones count for nothing; NULL: dense */
  int64_t K;
  int64_t window; /* dense: the last so many tokens up to a query; 0: all */
  double scale;   /* of logits; 0: D ** -0.5 */
  void *out;      /* (B, H, L, Dv) of q_dtype, without gaps */
  float *lse;     /* (B, H, L) */
  int threads;
  void *workspace;
  size_t workspace_bytes;
  int64_t Dv;               /* coordinates of a value; 0: D */
  double soft_cap;          /* of logits; 0: none */
  const float *sink_logits; /* (H,), -inf for none; NULL: no sinks */
} adamas_attention;

/* The version of the library that runs, to be compared with ADAMAS_ABI. */
ADAMAS_API int adamas_abi(void);
/* A sentence about a status. */
ADAMAS_API const char *adamas_error(int status);
/* The level of instructions in use, "x86-64-v3" for example. */
ADAMAS_API const char *adamas_level(void);
/* Threads of a call that names none: the environment's ADAMAS_NUM_THREADS, OMP_NUM_THREADS, or the
   processors of this process. adamas_set_threads() changes the number; 0 goes back. */
ADAMAS_API int adamas_threads(void);
ADAMAS_API void adamas_set_threads(int threads);

/* Bytes of all arrays of plain codes (bits 2, centered 0), centered ones (2, 1) and those with a
   third bit (3, 1). With memory, they are placed in it: its `keys` pointers are set, for B, H_kv, T
   and D as they are there. Memory that calloc returns is ready for codes. 0: the shape is wrong. */
ADAMAS_API size_t adamas_place_keys(adamas_keys *keys, int centered, int bits, void *memory);
/* The same for all arrays of values, sums among them. */
ADAMAS_API size_t adamas_place_values(adamas_values *values, void *memory);

/* Code keys k (B, H_kv, S, D), rotated, as the tokens start[b], start[b] + 1, ... of each sequence.
   Of each sequence the first count[b] are taken; all S if count is NULL. start NULL: 0. Tokens are
   appended in their order, because centered codes depend on the tokens before them. */
ADAMAS_API int adamas_append_keys(const adamas_keys *keys, int dtype, adamas_rows k, int64_t S,
                                  const int64_t *start, const int64_t *count, int threads);
/* The same for values. With sums, a total has the bits that one append of all values would give.
   Values from token 0 on begin new sums. So a sequence that is cut is appended again from there. */
ADAMAS_API int adamas_append_values(const adamas_values *values, int dtype, adamas_rows v, int64_t S,
                                    const int64_t *start, const int64_t *count, int threads);

/* Select tokens, attend to them, or both. */
ADAMAS_API int adamas_step_run(const adamas_step *step);
/* Bytes of workspace that the same call needs at most; 0 if its arguments are wrong. */
ADAMAS_API size_t adamas_step_workspace(const adamas_step *step);

/* Attention over chosen tokens, or dense. */
ADAMAS_API int adamas_attend(const adamas_attention *attention);
ADAMAS_API size_t adamas_attend_workspace(const adamas_attention *attention);

#ifdef __cplusplus
}
#endif
#endif
