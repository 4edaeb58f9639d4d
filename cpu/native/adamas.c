/* The interface of libadamas: checks of arguments, records for the kernels, and the parallel loop.
   All arithmetic is in the kernels, which Numba compiles, see emit.py. */

#include "include/adamas.h"

#include <float.h>
#include <limits.h>
#include <math.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "kernels.h" /* records, and the functions of each level: written by build.py */
#include "pool.h"

enum { LINE = 64, TILE = 64, MOST_DIM = 2048, INVISIBLE = 65535, MOST_GIVEN_THREADS = 1024 };

typedef int64_t plan_function(int64_t loop);
typedef int64_t place_function(int64_t loop, int64_t memory);
typedef int64_t work_function(int64_t record, int64_t item, int64_t scratch);

/* ---- the level --------------------------------------------------------------------------------- */

/* The first level that is the best one here. Two threads may find it at once, and find the same. */
static const struct level *find_level(void) {
  const char *wanted = getenv("ADAMAS_ISA");
  int best = LEVELS - 1;
  while (best > 0 && !levels[best].supported()) best--;
  if (wanted)
    for (int i = 0; i <= best; i++)
      if (!strcmp(wanted, levels[i].name)) return &levels[i];
  return &levels[best];
}

static const struct level *level(void) {
  static _Atomic(const struct level *) found;
  const struct level *one = atomic_load_explicit(&found, memory_order_acquire);
  if (!one) {
    one = find_level();
    atomic_store_explicit(&found, one, memory_order_release);
  }
  return one;
}

static int64_t function(int index) { return (int64_t)(intptr_t)level()->functions[index]; }

const char *adamas_level(void) { return level()->name; }
int adamas_abi(void) { return ADAMAS_ABI; }
int adamas_threads(void) { return adamas_pool_threads(); }
void adamas_set_threads(int threads) { adamas_pool_limit(threads); }

const char *adamas_error(int status) {
  switch (status) {
    case ADAMAS_OK: return "no error";
    case ADAMAS_ERROR_ARGUMENT: return "a pointer that this call needs is NULL";
    case ADAMAS_ERROR_SIZE:
      return "the field `size` of a struct is not its sizeof; set it, or take a library that is as "
             "new as the header";
    case ADAMAS_ERROR_SHAPE:
      return "a shape is wrong; expected axes of at least 1, head_dim up to 2048, H a multiple of "
             "H_kv, the same B, H_kv, T and D everywhere, and the D of coded values as Dv";
    case ADAMAS_ERROR_DTYPE: return "a dtype is unknown; expected one of adamas_dtype";
    case ADAMAS_ERROR_LENGTH:
      return "a number of tokens is wrong; expected 0 or more, and at most what the arrays have room "
             "for";
    case ADAMAS_ERROR_BUDGET:
      return "the budget is wrong; expected at least 1, at least sinks + recent, and at most the "
             "tokens of the longest sequence";
    case ADAMAS_ERROR_OPTION:
      return "an option is wrong: query_bits is 0 or 2 to 8, and distances stay below 65535; centered "
             "codes, a group and a tail need query_bits; a group has no refine and no tail; a tail "
             "needs codes with a third bit, values and attention; a soft cap is 0 or above, and "
             "finite in float; a sink is a number or -inf";
    case ADAMAS_ERROR_INDEX: return "an index is not below S";
    case ADAMAS_ERROR_MEMORY: return "there is no memory for this call";
    case ADAMAS_ERROR_WORKSPACE: return "the workspace is smaller than this call needs";
    default: return "an unknown status";
  }
}

/* ---- the parallel loop ------------------------------------------------------------------------- */

struct shares {
  work_function *work;
  int64_t record, items, scratch, scratch_bytes;
  _Atomic int64_t next;
  atomic_int threads;
};

static int64_t to_line(int64_t bytes) { return (bytes + LINE - 1) / LINE * LINE; }

static void take_items(void *context) {
  struct shares *shares = context;
  int64_t own = shares->scratch + shares->scratch_bytes * atomic_fetch_add(&shares->threads, 1);
  for (;;) {
    int64_t item = atomic_fetch_add(&shares->next, 1);
    if (item >= shares->items) return;
    shares->work(shares->record, item, own);
  }
}

static void run_round(struct record_loop *loop, int64_t function, int64_t items, int64_t scratch) {
  struct shares shares = {(work_function *)(intptr_t)function, loop->record, items, scratch,
                          to_line(loop->scratch), 0, 0};
  int64_t threads = loop->threads < items ? loop->threads : items;
  if (items > 0) adamas_pool_run(take_items, &shares, (int)threads);
}

static size_t workspace_of(const struct record_loop *loop) {
  return (size_t)(to_line(loop->shared) + loop->threads * to_line(loop->scratch) + LINE);
}

/* Plan a loop: its record and functions are filled, and its threads are as the caller asks. */
static void plan(struct record_loop *loop) {
  if (loop->threads < 1) loop->threads = adamas_pool_threads();
  if (loop->threads > MOST_GIVEN_THREADS) loop->threads = MOST_GIVEN_THREADS;
  ((plan_function *)(intptr_t)loop->plan)((int64_t)(intptr_t)loop);
  int64_t items = loop->items > loop->rest ? loop->items : loop->rest;
  if (loop->threads > items) loop->threads = items < 1 ? 1 : items;
}

static int run(struct record_loop *loop, void *workspace, size_t bytes) {
  plan(loop);
  size_t needed = workspace_of(loop);
  void *own = NULL;
  if (!workspace)
    workspace = own = malloc(needed);
  else if (bytes < needed)
    return ADAMAS_ERROR_WORKSPACE;
  if (!workspace) return ADAMAS_ERROR_MEMORY;
  int64_t memory = to_line((int64_t)(intptr_t)workspace);
  if (loop->place) ((place_function *)(intptr_t)loop->place)((int64_t)(intptr_t)loop, memory);
  int64_t scratch = memory + to_line(loop->shared);
  run_round(loop, loop->work, loop->items, scratch);
  run_round(loop, loop->finish, loop->rest, scratch);
  free(own);
  return ADAMAS_OK;
}

/* For the Python package, which fills records itself. The layouts are those of its _records.py. */
ADAMAS_API int adamas_internal_run(int64_t record, int64_t plan, int64_t place, int64_t work,
                                   int64_t finish) {
  struct record_loop loop = {.record = record, .plan = plan, .place = place, .work = work,
                             .finish = finish};
  return run(&loop, NULL, 0);
}
ADAMAS_API const char *adamas_internal_stamp(void) { return STAMP; }

ADAMAS_API int64_t adamas_internal_function(const char *name) {
  for (int i = 0; i < FUNCTIONS; i++)
    if (!strcmp(name, function_names[i])) return function(i);
  return 0;
}

/* ---- checks ------------------------------------------------------------------------------------ */

static int64_t address(const void *pointer) { return (int64_t)(intptr_t)pointer; }
static int64_t padded(int64_t D) {
  int64_t n = 1;
  while (n < D) n *= 2;
  return n;
}
static int64_t words(int64_t D) { return (padded(D) + 63) / 64; }
static int is_dtype(int dtype) { return dtype >= ADAMAS_FLOAT32 && dtype <= ADAMAS_BFLOAT16; }
static int64_t item(int dtype) { return dtype == ADAMAS_FLOAT32 ? 4 : 2; }

/* Copy a struct of a program that may be older than this library: fields that it lacks are 0.
   `sizes` are those of all versions, the newest first, and then 0. */
static int adopt(void *own, const void *given, const size_t *sizes) {
  size_t size;
  if (!given) return ADAMAS_ERROR_ARGUMENT;
  memcpy(&size, given, sizeof size);
  for (const size_t *one = sizes; *one; one++)
    if (*one == size) {
      memset(own, 0, sizes[0]);
      memcpy(own, given, size);
      return ADAMAS_OK;
    }
  return ADAMAS_ERROR_SIZE;
}

/* A version of a struct ended before this field. */
#define BEFORE(type, field) offsetof(type, field)
static const size_t keys_sizes[] = {sizeof(adamas_keys), 0};
static const size_t values_sizes[] = {sizeof(adamas_values), BEFORE(adamas_values, sums), 0};
static const size_t selection_sizes[] = {sizeof(adamas_selection), 0};
static const size_t step_sizes[] = {sizeof(adamas_step), BEFORE(adamas_step, Dv), 0};
static const size_t attention_sizes[] = {sizeof(adamas_attention), BEFORE(adamas_attention, Dv), 0};

/* Products of axes are far below 2^63, where the bytes of an array are counted. */
static const int64_t most_elements = (int64_t)1 << 48;
static int is_axis(int64_t n) { return n >= 1 && n <= INT32_MAX; }
static int are_axes(int64_t a, int64_t b, int64_t c) {
  return is_axis(a) && is_axis(b) && is_axis(c) && a * b <= most_elements / MOST_DIM / c;
}

static adamas_rows dense_rows(adamas_rows x, int64_t heads, int64_t tokens, int64_t bytes) {
  if (!x.stride_b && !x.stride_h && !x.stride_token) {
    x.stride_token = bytes;
    x.stride_h = tokens * bytes;
    x.stride_b = heads * x.stride_h;
  }
  return x;
}

static adamas_heads dense_heads(adamas_heads x, int64_t heads, int64_t bytes) {
  if (!x.stride_b && !x.stride_h) {
    x.stride_h = bytes;
    x.stride_b = heads * bytes;
  }
  return x;
}

/* The codes with all strides filled in. */
static int check_keys(const adamas_keys *given, adamas_keys *keys) {
  int status = adopt(keys, given, keys_sizes);
  if (status) return status;
  int64_t H = keys->H_kv, T = keys->T, Dt, P;
  if (!are_axes(keys->B, H, T) || keys->D < 1 || keys->D > MOST_DIM) return ADAMAS_ERROR_SHAPE;
  Dt = padded(keys->D);
  P = words(keys->D);
  int centered = !!keys->means.data + !!keys->scales.data + !!keys->open_tile.data;
  int third = !!keys->third.data + !!keys->third_scales.data;
  if (!keys->planes.data || !keys->thresholds) return ADAMAS_ERROR_ARGUMENT;
  if (centered % 3 || third % 2 || (third && !centered)) return ADAMAS_ERROR_ARGUMENT;
  if (!keys->to_low) keys->to_low = keys->B * H * T * TILE * P * 8;
  keys->planes = dense_heads(keys->planes, H, T * TILE * P * 8);
  keys->means = dense_heads(keys->means, H, T * Dt * 2);
  keys->scales = dense_heads(keys->scales, H, T * TILE);
  keys->open_tile = dense_heads(keys->open_tile, H, TILE * Dt * 4);
  keys->third = dense_heads(keys->third, H, T * TILE * P * 8);
  keys->third_scales = dense_heads(keys->third_scales, H, T * TILE);
  return ADAMAS_OK;
}

static int check_values(const adamas_values *given, adamas_values *values) {
  int status = adopt(values, given, values_sizes);
  if (status) return status;
  int64_t H = values->H_kv, T = values->T, P;
  if (!are_axes(values->B, H, T) || values->D < 1 || values->D > MOST_DIM) return ADAMAS_ERROR_SHAPE;
  P = words(values->D);
  if (!values->codes.data || !values->scales.data || !values->bases.data ||
      (values->sums.data && !values->total))
    return ADAMAS_ERROR_ARGUMENT;
  values->codes = dense_heads(values->codes, H, T * TILE * P * 16);
  values->scales = dense_heads(values->scales, H, T * TILE);
  values->bases = dense_heads(values->bases, H, 8 * values->D);
  values->sums = dense_heads(values->sums, H, 8 * values->D);
  return ADAMAS_OK;
}

/* The coordinates of a value: those given, or those of a key. */
static int64_t value_dim(int64_t Dv, int64_t D) { return Dv ? Dv : D; }
static int is_dim(int64_t D) { return D >= 1 && D <= MOST_DIM; }

static int check_softmax(double soft_cap, const float *sink_logits, int64_t H) {
  if (!(soft_cap >= 0 && soft_cap <= FLT_MAX) || (soft_cap > 0 && (float)soft_cap == 0))
    return ADAMAS_ERROR_OPTION;
  for (int64_t h = 0; sink_logits && h < H; h++)
    if (!(sink_logits[h] < INFINITY)) return ADAMAS_ERROR_OPTION;
  return ADAMAS_OK;
}

/* The new tokens of each sequence as pairs of (start, end or count). The caller frees them. */
static int check_span(int64_t B, int64_t S, int64_t slots, const int64_t *start,
                      const int64_t *count, int ends, int64_t **pairs) {
  if (S < 0 || S > INT32_MAX) return ADAMAS_ERROR_LENGTH;
  for (int64_t b = 0; b < B; b++) {
    int64_t from = start ? start[b] : 0, n = count ? count[b] : S;
    if (from < 0 || n < 0 || n > S || from > slots - n) return ADAMAS_ERROR_LENGTH;
  }
  int64_t *own = malloc(sizeof *own * 2 * (size_t)B);
  if (!own) return ADAMAS_ERROR_MEMORY;
  for (int64_t b = 0; b < B; b++) {
    own[2 * b] = start ? start[b] : 0;
    own[2 * b + 1] = (count ? count[b] : S) + (ends ? own[2 * b] : 0);
  }
  *pairs = own;
  return ADAMAS_OK;
}

/* ---- codes ------------------------------------------------------------------------------------- */

/* Bytes of arrays one after another, each on lines of its own. With memory they are set. */
static size_t place(adamas_heads *const *parts, const int64_t *sizes, int count, void *memory) {
  size_t bytes = 0;
  for (int i = 0; i < count; i++) {
    if (memory) {
      adamas_heads part = {(char *)memory + bytes, 0, 0};
      *parts[i] = part;
    }
    bytes += (size_t)to_line(sizes[i]);
  }
  return bytes;
}

size_t adamas_place_keys(adamas_keys *keys, int centered, int bits, void *memory) {
  if (!keys || !are_axes(keys->B, keys->H_kv, keys->T) || keys->D < 1 || keys->D > MOST_DIM)
    return 0;
  if (bits < 2 || bits > 3 || (bits == 3 && !centered)) return 0;
  int64_t heads = keys->B * keys->H_kv, T = keys->T, Dt = padded(keys->D), P = words(keys->D);
  int64_t tokens = heads * T * TILE;
  adamas_heads *const parts[] = {&keys->planes,    &keys->means, &keys->scales,
                                 &keys->open_tile, &keys->third, &keys->third_scales};
  const int64_t sizes[] = {tokens * P * 16, heads * T * Dt * 2, tokens,
                           heads * TILE * Dt * 4, tokens * P * 8, tokens};
  if (memory) keys->to_low = 0;
  return place(parts, sizes, bits == 3 ? 6 : centered ? 4 : 1, memory);
}

size_t adamas_place_values(adamas_values *values, void *memory) {
  if (!values || values->size != sizeof *values ||
      !are_axes(values->B, values->H_kv, values->T) || values->D < 1 || values->D > MOST_DIM)
    return 0;
  int64_t heads = values->B * values->H_kv, tokens = heads * values->T * TILE;
  int64_t row = 4 * heads * values->D;
  adamas_heads total = {values->total, 0, 0};
  adamas_heads *const parts[] = {&values->codes, &values->scales, &values->bases, &values->sums,
                                 &total};
  const int64_t sizes[] = {tokens * words(values->D) * 16, tokens, 2 * row, 2 * row, row};
  size_t bytes = place(parts, sizes, 5, memory);
  values->total = total.data;
  return bytes;
}

static int append_plain(const adamas_keys *keys, int dtype, adamas_rows k, int64_t S,
                        int64_t *first, int threads) {
  struct record_encode record = {
      .k = address(k.data), .dtype = dtype, .k_b = k.stride_b, .k_h = k.stride_h,
      .k_s = k.stride_token, .B = keys->B, .H_kv = keys->H_kv, .S = S, .D = keys->D,
      .Dt = padded(keys->D), .P = words(keys->D), .first = address(first),
      .thresholds = address(keys->thresholds), .head_bytes = 12,
      .planes = address(keys->planes.data), .to_low = keys->to_low,
      .planes_b = keys->planes.stride_b, .planes_h = keys->planes.stride_h};
  struct record_loop loop = {.record = address(&record), .threads = threads,
                             .plan = function(F_plan_encode), .work = function(F_encode_block)};
  return run(&loop, NULL, 0);
}

/* Plain codes of each sequence's own number of keys. */
static int append_ragged(const adamas_keys *keys, int dtype, adamas_rows k, int64_t *pairs,
                         int threads) {
  int status = ADAMAS_OK;
  for (int64_t b = 0; b < keys->B && !status; b++) {
    adamas_keys one = *keys;
    adamas_rows own = k;
    one.B = 1;
    one.planes.data = (char *)keys->planes.data + b * keys->planes.stride_b;
    own.data = (char *)k.data + b * k.stride_b;
    status = append_plain(&one, dtype, own, pairs[2 * b + 1], &pairs[2 * b], threads);
  }
  return status;
}

static int append_centered(const adamas_keys *keys, int dtype, adamas_rows k, int64_t S,
                           int64_t *span, int threads) {
  struct record_encode_centered record = {
      .k = address(k.data), .dtype = dtype, .k_b = k.stride_b, .k_h = k.stride_h,
      .k_s = k.stride_token, .B = keys->B, .H_kv = keys->H_kv, .S = S, .D = keys->D,
      .Dt = padded(keys->D), .P = words(keys->D), .thresholds = address(keys->thresholds),
      .span = address(span),
      .planes = address(keys->planes.data), .to_low = keys->to_low,
      .planes_b = keys->planes.stride_b, .planes_h = keys->planes.stride_h,
      .means = address(keys->means.data), .means_b = keys->means.stride_b,
      .means_h = keys->means.stride_h,
      .scales = address(keys->scales.data), .scales_b = keys->scales.stride_b,
      .scales_h = keys->scales.stride_h,
      .open_tile = address(keys->open_tile.data), .open_tile_b = keys->open_tile.stride_b,
      .open_tile_h = keys->open_tile.stride_h,
      .third = address(keys->third.data), .third_b = keys->third.stride_b,
      .third_h = keys->third.stride_h,
      .third_scales = address(keys->third_scales.data),
      .third_scales_b = keys->third_scales.stride_b,
      .third_scales_h = keys->third_scales.stride_h};
  struct record_loop loop = {.record = address(&record), .threads = threads,
                             .plan = function(F_plan_centered),
                             .work = function(F_encode_full_tile),
                             .finish = function(F_encode_last_tokens)};
  return run(&loop, NULL, 0);
}

int adamas_append_keys(const adamas_keys *given, int dtype, adamas_rows k, int64_t S,
                       const int64_t *start, const int64_t *count, int threads) {
  adamas_keys keys;
  int64_t *pairs;
  int status = check_keys(given, &keys);
  if (status) return status;
  if (!is_dtype(dtype)) return ADAMAS_ERROR_DTYPE;
  if (!k.data && S != 0) return ADAMAS_ERROR_ARGUMENT;
  int centered = keys.means.data != NULL;
  status = check_span(keys.B, S, keys.T * TILE, start, count, centered, &pairs);
  if (status) return status;
  k = dense_rows(k, keys.H_kv, S, keys.D * item(dtype));
  if (S > 0)
    status = centered ? append_centered(&keys, dtype, k, S, pairs, threads)
                      : append_ragged(&keys, dtype, k, pairs, threads);
  free(pairs);
  return status;
}

int adamas_append_values(const adamas_values *given, int dtype, adamas_rows v, int64_t S,
                         const int64_t *start, const int64_t *count, int threads) {
  adamas_values values;
  int64_t *pairs;
  int status = check_values(given, &values);
  if (status) return status;
  if (!is_dtype(dtype)) return ADAMAS_ERROR_DTYPE;
  if (!v.data && S != 0) return ADAMAS_ERROR_ARGUMENT;
  status = check_span(values.B, S, values.T * TILE, start, count, 0, &pairs);
  if (status) return status;
  static const float rms_share[] = CENTERED_THRESHOLDS;
  v = dense_rows(v, values.H_kv, S, values.D * item(dtype));
  struct record_encode_values record = {
      .v = address(v.data), .dtype = dtype, .v_b = v.stride_b, .v_h = v.stride_h,
      .v_s = v.stride_token, .B = values.B, .H_kv = values.H_kv, .S = S, .D = values.D,
      .Dt = padded(values.D), .P = words(values.D), .thresholds = address(rms_share),
      .span = address(pairs),
      .codes = address(values.codes.data), .codes_b = values.codes.stride_b,
      .codes_h = values.codes.stride_h,
      .scales = address(values.scales.data), .scales_b = values.scales.stride_b,
      .scales_h = values.scales.stride_h,
      .bases = address(values.bases.data), .bases_b = values.bases.stride_b,
      .bases_h = values.bases.stride_h,
      .sums = address(values.sums.data), .sums_b = values.sums.stride_b,
      .sums_h = values.sums.stride_h, .total = address(values.total)};
  struct record_loop loop = {.record = address(&record), .threads = threads,
                             .plan = function(F_plan_values), .work = function(F_sum_values),
                             .finish = function(F_encode_values_block)};
  if (S > 0) status = run(&loop, NULL, 0);
  free(pairs);
  return status;
}

/* ---- the step ---------------------------------------------------------------------------------- */

static int check_selection(const adamas_selection *s, const adamas_keys *keys,
                           const adamas_step *step) {
  int bits = s->query_bits, centered = keys->means.data != NULL;
  if (s->sinks < 0 || s->recent < 0 || s->refine < 0 || s->tail < 0) return ADAMAS_ERROR_OPTION;
  if (s->refine > INT32_MAX || s->tail > INT32_MAX) return ADAMAS_ERROR_OPTION;
  if (s->budget < 1 || s->budget > INT32_MAX || s->sinks > s->budget ||
      s->recent > s->budget - s->sinks)
    return ADAMAS_ERROR_BUDGET;
  if (bits && (bits < 2 || bits > 8 || 3 * ((1 << (bits - 1)) - 1) * padded(keys->D) >= INVISIBLE))
    return ADAMAS_ERROR_OPTION;
  if (!bits && (centered || s->group || s->tail)) return ADAMAS_ERROR_OPTION;
  if (s->group && (s->refine || s->tail)) return ADAMAS_ERROR_OPTION;
  if (s->tail && (!keys->third.data || !step->values || !step->out)) return ADAMAS_ERROR_OPTION;
  if (s->tail && !step->values->total) return ADAMAS_ERROR_ARGUMENT;
  if ((s->refine || step->out) && !step->k.data) return ADAMAS_ERROR_ARGUMENT;
  return ADAMAS_OK;
}

static int check_lengths(const adamas_step *step, const adamas_keys *keys) {
  int64_t longest = 0, room = keys->T * TILE;
  if (step->k.data && step->S < room) room = step->S;
  for (int64_t b = 0; b < keys->B; b++) {
    if (step->lengths[b] < 0 || step->lengths[b] > room) return ADAMAS_ERROR_LENGTH;
    if (step->lengths[b] > longest) longest = step->lengths[b];
  }
  return step->selection->budget > longest ? ADAMAS_ERROR_BUDGET : ADAMAS_OK;
}

/* Check a step, and fill in all strides. The selection becomes a copy too. */
static int check_step(const adamas_step *given, adamas_step *step, adamas_keys *keys,
                      adamas_values *values, adamas_selection *selection) {
  int status = adopt(step, given, step_sizes);
  if (status) return status;
  if ((status = check_keys(step->keys, keys))) return status;
  memset(values, 0, sizeof *values);
  if (step->values && (status = check_values(step->values, values))) return status;
  step->Dv = value_dim(step->Dv, keys->D);
  if (!is_dim(step->Dv)) return ADAMAS_ERROR_SHAPE;
  if (step->values && (values->B != keys->B || values->H_kv != keys->H_kv ||
                       values->T != keys->T || values->D != step->Dv))
    return ADAMAS_ERROR_SHAPE;
  if (!are_axes(keys->B, step->H, step->L) || step->H % keys->H_kv) return ADAMAS_ERROR_SHAPE;
  if (!step->q.data || !step->lengths) return ADAMAS_ERROR_ARGUMENT;
  if (!step->out != !step->lse || (step->out && !step->v.data)) return ADAMAS_ERROR_ARGUMENT;
  if (!step->out && !step->indices) return ADAMAS_ERROR_ARGUMENT;
  if (!is_dtype(step->q_dtype) || !is_dtype(step->kv_dtype)) return ADAMAS_ERROR_DTYPE;
  if (step->k.data && !is_axis(step->S)) return ADAMAS_ERROR_SHAPE;
  if ((status = adopt(selection, step->selection, selection_sizes))) return status;
  step->selection = selection;
  if ((status = check_selection(selection, keys, step))) return status;
  if ((status = check_softmax(step->soft_cap, step->sink_logits, step->H))) return status;
  if (!are_axes(keys->B * step->H, step->L, step->selection->budget)) return ADAMAS_ERROR_SHAPE;
  if ((status = check_lengths(step, keys))) return status;
  step->q = dense_rows(step->q, step->H, step->L, keys->D * item(step->q_dtype));
  step->k = dense_rows(step->k, keys->H_kv, step->S, keys->D * item(step->kv_dtype));
  step->v = dense_rows(step->v, keys->H_kv, step->S, step->Dv * item(step->kv_dtype));
  return ADAMAS_OK;
}

static int64_t at_most(int64_t a, int64_t b) { return a < b ? a : b; }

/* A value that is not finite, or 0, stands for the usual scale. */
static double scale_or(double scale, int64_t D) {
  return scale != 0 ? scale : 1 / sqrt((double)D);
}

static struct record_step record_of(const adamas_step *step, const adamas_keys *keys,
                                    const adamas_values *values) {
  const adamas_selection *s = step->selection;
  int64_t slots = keys->T * TILE, tail = at_most(s->tail, slots);
  int estimated = s->group || keys->means.data;
  int collect = s->group ? F_collect_group : estimated ? F_collect_estimated : F_collect;
  int choose = tail ? F_choose_tail : estimated ? F_choose_estimated : F_choose;
  struct record_step record = {
      .score_tile = function(F_score_tile), .collect = function(collect),
      .choose = function(choose), .rank_by_products = function(F_rank_by_products),
      .attend_rows = function(F_attend_rows), .add_tail = tail ? function(F_add_tail) : 0,
      .q = address(step->q.data), .q_dtype = step->q_dtype, .q_b = step->q.stride_b,
      .q_h = step->q.stride_h, .q_l = step->q.stride_token,
      .B = keys->B, .H = step->H, .L = step->L, .D = keys->D, .Dt = padded(keys->D),
      .planes = address(keys->planes.data), .to_low = keys->to_low,
      .planes_b = keys->planes.stride_b, .planes_h = keys->planes.stride_h,
      .H_kv = keys->H_kv, .slots = slots, .P = words(keys->D), .lengths = address(step->lengths),
      .thresholds = address(keys->thresholds),
      .means = address(keys->means.data), .means_b = keys->means.stride_b,
      .means_h = keys->means.stride_h,
      .scales = address(keys->scales.data), .scales_b = keys->scales.stride_b,
      .scales_h = keys->scales.stride_h,
      .weights = s->query_bits ? s->query_bits - 1 : 0, .budget = s->budget,
      .refined = at_most(s->refine * s->budget, slots), .sinks = s->sinks, .recent = s->recent,
      .group = s->group != 0, .indices = address(step->indices),
      .k = address(step->k.data), .kv_dtype = step->kv_dtype, .k_b = step->k.stride_b,
      .k_h = step->k.stride_h, .k_s = step->k.stride_token, .S = step->S,
      .v = address(step->v.data), .v_b = step->v.stride_b, .v_h = step->v.stride_h,
      .v_s = step->v.stride_token, .Dv = step->Dv,
      .out = address(step->out), .out_dtype = step->q_dtype, .lse = address(step->lse),
      .scale = scale_or(step->scale, keys->D), .soft_cap = step->soft_cap,
      .sink_logits = address(step->sink_logits), .tail = tail};
  if (tail) {
    record.Dvt = padded(step->Dv);
    record.Pv = words(step->Dv);
    record.third = address(keys->third.data);
    record.third_b = keys->third.stride_b;
    record.third_h = keys->third.stride_h;
    record.finer = address(keys->third_scales.data);
    record.finer_b = keys->third_scales.stride_b;
    record.finer_h = keys->third_scales.stride_h;
    record.v_codes = address(values->codes.data);
    record.v_codes_b = values->codes.stride_b;
    record.v_codes_h = values->codes.stride_h;
    record.v_scales = address(values->scales.data);
    record.v_scales_b = values->scales.stride_b;
    record.v_scales_h = values->scales.stride_h;
    record.bases = address(values->bases.data);
    record.bases_b = values->bases.stride_b;
    record.bases_h = values->bases.stride_h;
    record.total = address(values->total);
  }
  return record;
}

static struct record_loop step_loop(struct record_step *record, int threads) {
  struct record_loop loop = {.record = address(record), .threads = threads,
                             .plan = function(F_plan_step), .place = function(F_place_step),
                             .work = function(F_step_share)};
  return loop;
}

int adamas_step_run(const adamas_step *given) {
  adamas_step step;
  adamas_keys keys;
  adamas_values values;
  adamas_selection selection;
  int status = check_step(given, &step, &keys, &values, &selection);
  if (status) return status;
  struct record_step record = record_of(&step, &keys, &values);
  struct record_loop loop = step_loop(&record, step.threads);
  return run(&loop, step.workspace, step.workspace_bytes);
}

size_t adamas_step_workspace(const adamas_step *given) {
  adamas_step step;
  adamas_keys keys;
  adamas_values values;
  adamas_selection selection;
  if (check_step(given, &step, &keys, &values, &selection)) return 0;
  struct record_step record = record_of(&step, &keys, &values);
  struct record_loop loop = step_loop(&record, step.threads);
  plan(&loop);
  return workspace_of(&loop);
}

/* ---- attention --------------------------------------------------------------------------------- */

static int check_attention(const adamas_attention *given, adamas_attention *a) {
  int status = adopt(a, given, attention_sizes);
  if (status) return status;
  a->Dv = value_dim(a->Dv, a->D);
  if (!are_axes(a->B, a->H, a->L) || !are_axes(a->B, a->H_kv, a->S) || !is_dim(a->D) ||
      !is_dim(a->Dv) || a->H % a->H_kv || (a->indices && !are_axes(a->B * a->H, a->L, a->K)))
    return ADAMAS_ERROR_SHAPE;
  if (!a->q.data || !a->k.data || !a->v.data || !a->out || !a->lse) return ADAMAS_ERROR_ARGUMENT;
  if (!is_dtype(a->q_dtype) || !is_dtype(a->kv_dtype)) return ADAMAS_ERROR_DTYPE;
  if (a->window < 0) return ADAMAS_ERROR_OPTION;
  if ((status = check_softmax(a->soft_cap, a->sink_logits, a->H))) return status;
  a->q = dense_rows(a->q, a->H, a->L, a->D * item(a->q_dtype));
  a->k = dense_rows(a->k, a->H_kv, a->S, a->D * item(a->kv_dtype));
  a->v = dense_rows(a->v, a->H_kv, a->S, a->Dv * item(a->kv_dtype));
  return ADAMAS_OK;
}

static struct record_step sparse_record(const adamas_attention *a) {
  struct record_step record = {
      .attend_rows = function(F_attend_rows), .q = address(a->q.data), .q_dtype = a->q_dtype,
      .q_b = a->q.stride_b, .q_h = a->q.stride_h, .q_l = a->q.stride_token,
      .B = a->B, .H = a->H, .L = a->L, .D = a->D, .H_kv = a->H_kv, .budget = a->K,
      .indices = address(a->indices), .k = address(a->k.data), .kv_dtype = a->kv_dtype,
      .k_b = a->k.stride_b, .k_h = a->k.stride_h, .k_s = a->k.stride_token, .S = a->S,
      .v = address(a->v.data), .v_b = a->v.stride_b, .v_h = a->v.stride_h,
      .v_s = a->v.stride_token, .Dv = a->Dv, .out = address(a->out), .out_dtype = a->q_dtype,
      .lse = address(a->lse), .scale = scale_or(a->scale, a->D), .soft_cap = a->soft_cap,
      .sink_logits = address(a->sink_logits)};
  return record;
}

static struct record_dense dense_record(const adamas_attention *a) {
  struct record_dense record = {
      .q = address(a->q.data), .q_dtype = a->q_dtype, .q_b = a->q.stride_b, .q_h = a->q.stride_h,
      .q_l = a->q.stride_token, .B = a->B, .H = a->H, .L = a->L, .D = a->D, .H_kv = a->H_kv,
      .k = address(a->k.data), .kv_dtype = a->kv_dtype, .k_b = a->k.stride_b,
      .k_h = a->k.stride_h, .k_s = a->k.stride_token, .S = a->S,
      .v = address(a->v.data), .v_b = a->v.stride_b, .v_h = a->v.stride_h,
      .v_s = a->v.stride_token, .Dv = a->Dv,
      .window = a->window ? at_most(a->window, a->S) : a->S,
      .out = address(a->out), .lse = address(a->lse), .scale = scale_or(a->scale, a->D),
      .soft_cap = a->soft_cap, .sink_logits = address(a->sink_logits)};
  return record;
}

static struct record_loop sparse_loop(struct record_step *record, int threads) {
  struct record_loop loop = {.record = address(record), .threads = threads,
                             .plan = function(F_plan_attend), .work = function(F_attend_share)};
  return loop;
}

static struct record_loop dense_loop(struct record_dense *record, int threads) {
  struct record_loop loop = {.record = address(record), .threads = threads,
                             .plan = function(F_plan_dense), .place = function(F_place_dense),
                             .work = function(F_attend_block), .finish = function(F_merge_splits)};
  return loop;
}

int adamas_attend(const adamas_attention *given) {
  adamas_attention a;
  int status = check_attention(given, &a);
  if (status) return status;
  if (a.indices) {
    int64_t count = a.B * a.H * a.L * a.K;
    for (int64_t i = 0; i < count; i++)
      if (a.indices[i] >= a.S) return ADAMAS_ERROR_INDEX;
    struct record_step record = sparse_record(&a);
    struct record_loop loop = sparse_loop(&record, a.threads);
    return run(&loop, a.workspace, a.workspace_bytes);
  }
  struct record_dense record = dense_record(&a);
  struct record_loop loop = dense_loop(&record, a.threads);
  return run(&loop, a.workspace, a.workspace_bytes);
}

size_t adamas_attend_workspace(const adamas_attention *given) {
  adamas_attention a;
  if (check_attention(given, &a)) return 0;
  struct record_step step = sparse_record(&a);
  struct record_dense dense = dense_record(&a);
  struct record_loop loop = a.indices ? sparse_loop(&step, a.threads) : dense_loop(&dense, a.threads);
  plan(&loop);
  return workspace_of(&loop);
}
