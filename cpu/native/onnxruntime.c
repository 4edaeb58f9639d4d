/* An operator for ONNX Runtime: the inputs of its GroupQueryAttention, and codes of keys and values.

   A prompt gets dense attention. A single new token attends to the budget's tokens by keys and
   values, and to all others by their codes. */

#include "onnxruntime_api.h"

#include <math.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "code_block.h"
#include "include/adamas.h"
#include "numbers.h"
#include "rotary.h"

#define NAME "SparseGroupQueryAttention"

enum { TILE = 64, MOST_AXES = 8 };
enum {
  QUERY, KEY, VALUE, PAST_KEY, PAST_VALUE, SEQLENS_K, TOTAL, COS, SIN, PAST_CODES, HEAD_SINK,
  INPUTS
};
enum { OUTPUT, PRESENT_KEY, PRESENT_VALUE, PRESENT_CODES, OUTPUTS };

static const char *const input_names[] = {
    "query", "key", "value", "past_key", "past_value", "seqlens_k", "total_sequence_length",
    "cos_cache", "sin_cache", "past_codes", "head_sink"};

/* A node of a graph. */
struct node {
  int64_t H, H_kv;
  double scale, soft_cap; /* 0: head_dim ** -0.5, and no cap */
  int rotary, interleaved;
  adamas_selection selection;
  float thresholds[]; /* (H_kv, 3) */
};

struct tensor {
  char *data; /* NULL: an input that is not given */
  int64_t axes[MOST_AXES];
  size_t rank;
  int type;
};

/* One run of a node. */
struct call {
  const struct node *node;
  struct tensor in[INPUTS], out[OUTPUTS];
  int64_t B, S, D, total, room; /* S new tokens; room for tokens in the present keys */
  int dtype;
  int64_t item;                     /* bytes of a number */
  int64_t *start, *count, *lengths; /* (B,): tokens before, new ones, and all */
  adamas_rows q, k, v;              /* of the new tokens, rotated */
  struct code_block block;
  adamas_keys keys;
  adamas_values values;
  void *scratch;
  float *lse, *total_of_values;
  float *sink_logits; /* (H,); NULL without head_sink */
  char *rows; /* outputs of a prompt, head by head */
};

static const ort_api *api;

/* ---- errors ------------------------------------------------------------------------------------ */

static ort_status *refuse(const char *format, ...) {
  char text[512] = NAME ": ";
  size_t used = strlen(text);
  va_list given;
  va_start(given, format);
  vsnprintf(text + used, sizeof text - used, format, given);
  va_end(given);
  return api->create_status(ORT_INVALID_ARGUMENT, text);
}

static ort_status *of_library(const char *part, int status) {
  return status ? refuse("%s: %s", part, adamas_error(status)) : NULL;
}

/* An error about the shape of an input. */
static ort_status *wrong_shape(const struct call *call, int input, const char *expected) {
  const struct tensor *x = &call->in[input];
  char shape[256] = "";
  size_t used = 0;
  for (size_t i = 0; i < x->rank && used < sizeof shape - 32; i++)
    used += (size_t)snprintf(shape + used, sizeof shape - used, i ? ", %lld" : "%lld",
                             (long long)x->axes[i]);
  return refuse("%s has shape (%s); expected %s", input_names[input], shape, expected);
}

/* ---- nodes ------------------------------------------------------------------------------------- */

static int64_t integer(const ort_info *info, const char *name, int64_t usual) {
  int64_t value = usual;
  ort_status *status = api->attribute_int64(info, name, &value);
  if (!status) return value;
  api->release_status(status);
  return usual;
}

static float real(const ort_info *info, const char *name) {
  float value = 0;
  ort_status *status = api->attribute_float(info, name, &value);
  if (!status) return value;
  api->release_status(status);
  return 0;
}

static ort_status *check_node(const struct node *node, const ort_info *info) {
  const adamas_selection *s = &node->selection;
  if (node->H < 1 || node->H_kv < 1 || node->H_kv > INT16_MAX || node->H % node->H_kv)
    return refuse("num_heads is %lld and kv_num_heads %lld; expected a multiple of it",
                  (long long)node->H, (long long)node->H_kv);
  if (s->budget < 1)
    return refuse("budget is %lld; expected at least 1", (long long)s->budget);
  if (s->query_bits < 2 || s->query_bits > 8)
    return refuse("query_bits is %d; expected 2 to 8", s->query_bits);
  if (s->sinks < 0 || s->recent < 0 || s->sinks > s->budget || s->recent > s->budget - s->sinks)
    return refuse("sinks is %lld and recent %lld; expected 0 or more, together at most the budget of "
                  "%lld", (long long)s->sinks, (long long)s->recent, (long long)s->budget);
  if (s->refine < 0 || s->tail < 0)
    return refuse("refine is %lld and tail %lld; expected 0 or more", (long long)s->refine,
                  (long long)s->tail);
  if (s->group && (s->refine || s->tail))
    return refuse("group is 1 with refine=%lld and tail=%lld; expected 0 for both",
                  (long long)s->refine, (long long)s->tail);
  if (!(node->soft_cap >= 0 && node->soft_cap < INFINITY))
    return refuse("softcap is %g; expected a positive number, or 0 for none", node->soft_cap);
  if (integer(info, "local_window_size", -1) > 0)
    return refuse("local_window_size is given; expected no window: it needs no codes");
  return NULL;
}

static ort_status *create_node(const ort_op *op, const ort_api *given, const ort_info *info,
                               void **kernel) {
  static const float share[] = CENTERED_THRESHOLDS;
  (void)op;
  (void)given;
  int64_t H_kv = integer(info, "kv_num_heads", 0);
  size_t heads = H_kv > 0 && H_kv <= INT16_MAX ? (size_t)H_kv : 1;
  struct node *node = calloc(1, sizeof *node + heads * sizeof share);
  if (!node) return refuse("there is no memory for a node");
  node->H = integer(info, "num_heads", 0);
  node->H_kv = H_kv;
  node->scale = real(info, "scale");
  node->soft_cap = real(info, "softcap");
  node->rotary = integer(info, "do_rotary", 0) != 0;
  node->interleaved = integer(info, "rotary_interleaved", 0) != 0;
  node->selection = (adamas_selection){
      .size = sizeof node->selection, .query_bits = (int)integer(info, "query_bits", 4),
      .budget = integer(info, "budget", 128), .sinks = integer(info, "sinks", 0),
      .recent = integer(info, "recent", 0), .refine = integer(info, "refine", 0),
      .group = integer(info, "group", 0) != 0, .tail = integer(info, "tail", 256)};
  for (size_t h = 0; h < heads; h++) memcpy(node->thresholds + 3 * h, share, sizeof share);
  ort_status *status = check_node(node, info);
  if (status)
    free(node);
  else
    *kernel = node;
  return status;
}

/* ---- inputs ------------------------------------------------------------------------------------ */

static ort_status *read_tensor(const ort_value *value, struct tensor *x) {
  ort_shape *shape;
  ort_status *status = api->type_and_shape(value, &shape);
  if (status) return status;
  status = api->dimensions_count(shape, &x->rank);
  if (!status) status = api->element_type(shape, &x->type);
  if (!status && x->rank > MOST_AXES) status = refuse("an input has more than 8 axes");
  if (!status) status = api->dimensions(shape, x->axes, x->rank);
  api->release_shape(shape);
  void *data = NULL;
  if (!status) status = api->tensor_data((ort_value *)value, &data);
  x->data = data;
  return status;
}

static ort_status *read_inputs(struct call *call, ort_context *context) {
  size_t given;
  ort_status *status = api->input_count(context, &given);
  if (status) return status;
  if (given <= PAST_CODES || given > INPUTS)
    return refuse("it has %zu inputs; expected %d or %d", given, HEAD_SINK, INPUTS);
  for (size_t i = 0; i < given; i++) {
    const ort_value *value = NULL;
    status = api->input(context, i, &value);
    if (!status && value) {
      status = read_tensor(value, &call->in[i]);
      static char nothing; /* an array without elements may have no address */
      if (!call->in[i].data) call->in[i].data = &nothing;
    }
    if (status) return status;
  }
  return NULL;
}

static int has_shape(const struct tensor *x, int64_t a, int64_t b, int64_t c) {
  return x->rank == 3 && x->axes[0] == a && x->axes[1] == b && x->axes[2] == c;
}

/* Queries, keys and values: three arrays, or one with the heads of all three. */
static ort_status *check_rows(struct call *call) {
  const struct node *node = call->node;
  int64_t q = node->H * call->D, kv = node->H_kv * call->D, B = call->B, S = call->S;
  int packed = !call->in[KEY].data;
  if (packed != !call->in[VALUE].data)
    return refuse("one of key and value is given; expected both, or none with a packed query");
  if (packed && !has_shape(&call->in[QUERY], B, S, q + 2 * kv))
    return wrong_shape(call, QUERY, "(B, S, (num_heads + 2 kv_num_heads) head_dim) without a key");
  if (!packed && !has_shape(&call->in[QUERY], B, S, q))
    return wrong_shape(call, QUERY, "(B, S, num_heads head_dim)");
  for (int i = KEY; i <= VALUE && !packed; i++)
    if (!has_shape(&call->in[i], B, S, kv))
      return wrong_shape(call, i, "(B, S, kv_num_heads head_dim), with the query's B and S");
  int64_t item = call->item, token = (packed ? q + 2 * kv : q) * item, head = call->D * item;
  call->q = (adamas_rows){call->in[QUERY].data, S * token, head, token};
  if (packed) {
    call->k = call->v = call->q;
    call->k.data = call->in[QUERY].data + q * item;
    call->v.data = call->in[QUERY].data + (q + kv) * item;
  } else {
    token = kv * item;
    call->k = (adamas_rows){call->in[KEY].data, S * token, head, token};
    call->v = (adamas_rows){call->in[VALUE].data, S * token, head, token};
  }
  return NULL;
}

static ort_status *check_shapes(struct call *call) {
  const struct tensor *past = &call->in[PAST_KEY], *other = &call->in[PAST_VALUE];
  if (call->in[QUERY].rank != 3) return wrong_shape(call, QUERY, "3 axes");
  call->B = call->in[QUERY].axes[0];
  call->S = call->in[QUERY].axes[1];
  call->dtype = call->in[QUERY].type == ORT_FLOAT16 ? ADAMAS_FLOAT16 : ADAMAS_FLOAT32;
  call->item = call->dtype == ADAMAS_FLOAT16 ? 2 : 4;
  if (past->rank != 4 || past->axes[0] != call->B || past->axes[1] != call->node->H_kv)
    return wrong_shape(call, PAST_KEY, "(B, kv_num_heads, tokens, head_dim)");
  if (other->rank != 4 || memcmp(other->axes, past->axes, 4 * sizeof *past->axes))
    return wrong_shape(call, PAST_VALUE, "the shape of past_key");
  call->D = past->axes[3];
  if (call->B < 1 || call->S < 1 || call->D < 1 || call->D > 2048 || call->D % 8)
    return wrong_shape(call, QUERY, "a sequence, a token, and a head_dim that is a multiple of 8");
  const struct tensor *total = &call->in[TOTAL], *each = &call->in[SEQLENS_K];
  if (total->rank > 1 || (total->rank && total->axes[0] != 1))
    return wrong_shape(call, TOTAL, "one number");
  if (each->rank < 1 || each->axes[0] != call->B || (each->rank > 1 && each->axes[1] != 1))
    return wrong_shape(call, SEQLENS_K, "(B,)");
  int64_t *codes = call->in[PAST_CODES].axes;
  if (!has_shape(&call->in[PAST_CODES], call->B, call->node->H_kv, codes[2]) ||
      code_block_tiles(codes[2], call->D, call->node->selection.tail > 0) < 0)
    return wrong_shape(call, PAST_CODES, "(B, kv_num_heads, the code_bytes of some tokens, or 0)");
  const struct tensor *sinks = &call->in[HEAD_SINK];
  if (sinks->data && (sinks->rank != 1 || sinks->axes[0] != call->node->H))
    return wrong_shape(call, HEAD_SINK, "(num_heads,)");
  return check_rows(call);
}

/* The tokens of each sequence, as GroupQueryAttention counts them. */
static ort_status *read_lengths(struct call *call) {
  call->total = *(const int32_t *)call->in[TOTAL].data;
  int64_t past = call->in[PAST_KEY].axes[2];
  call->room = past > call->total ? past : call->total;
  int prompt = call->S == call->total;
  for (int64_t b = 0; b < call->B; b++) {
    int64_t length = (int64_t)((const int32_t *)call->in[SEQLENS_K].data)[b] + 1;
    int64_t start = prompt ? 0 : length - call->S;
    if (start < 0 || length < 0 || length > call->total || (!prompt && start > past))
      return refuse("seqlens_k[%lld] is %lld with total_sequence_length %lld, %lld new tokens and "
                    "room for %lld in past_key; expected the tokens of the sequence, less 1",
                    (long long)b, (long long)length - 1, (long long)call->total,
                    (long long)call->S, (long long)past);
    call->lengths[b] = length;
    call->start[b] = start;
    call->count[b] = length - start;
  }
  return NULL;
}

static ort_status *read_sinks(struct call *call) {
  for (int64_t h = 0; call->sink_logits && h < call->node->H; h++) {
    float sink = read_number(call->in[HEAD_SINK].data, call->dtype, h);
    if (!(sink < INFINITY))
      return refuse("head_sink[%lld] is %g; expected a number, or -inf for none", (long long)h, sink);
    call->sink_logits[h] = sink;
  }
  return NULL;
}

static int64_t longest(const struct call *call) {
  int64_t most = 0;
  for (int64_t b = 0; b < call->B; b++)
    if (call->lengths[b] > most) most = call->lengths[b];
  return most;
}

static ort_status *check_rotary(const struct call *call, struct rotary *rotary) {
  const struct tensor *cos = &call->in[COS], *sin = &call->in[SIN];
  if (!cos->data || !sin->data)
    return refuse("do_rotary is 1 without cos_cache or sin_cache; expected both");
  if (cos->rank != 2 || cos->axes[1] < 1 || 2 * cos->axes[1] > call->D)
    return wrong_shape(call, COS, "(positions, up to half of head_dim)");
  if (sin->rank != 2 || memcmp(sin->axes, cos->axes, 2 * sizeof *cos->axes))
    return wrong_shape(call, SIN, "the shape of cos_cache");
  if (cos->axes[0] < longest(call))
    return wrong_shape(call, COS, "a position for each token of total_sequence_length");
  *rotary = (struct rotary){cos->data, sin->data, cos->axes[1], call->node->interleaved};
  return NULL;
}

/* ---- memory ------------------------------------------------------------------------------------ */

static void *take(uintptr_t *at, int64_t bytes) {
  uintptr_t taken = *at;
  *at += (uintptr_t)(bytes + TILE - 1) / TILE * TILE;
  return (void *)taken;
}

/* Lay out all memory of a call, from an address on; returns where it ends. */
static uintptr_t lay_out(struct call *call, uintptr_t at, adamas_rows *q, adamas_rows *k) {
  int64_t B = call->B, S = call->S, H = call->node->H, H_kv = call->node->H_kv;
  int64_t row = call->D * call->item, per_b = B * (int64_t)sizeof *call->start;
  call->start = take(&at, per_b);
  call->count = take(&at, per_b);
  call->lengths = take(&at, per_b);
  call->lse = take(&at, 4 * B * H * S);
  call->total_of_values = take(&at, 4 * B * H_kv * call->D);
  call->sink_logits = call->in[HEAD_SINK].data ? take(&at, 4 * H) : NULL;
  call->rows = take(&at, S > 1 ? H * S * row : 0);
  *q = (adamas_rows){take(&at, call->node->rotary ? B * H * S * row : 0), H * S * row, S * row, row};
  *k = (adamas_rows){take(&at, call->node->rotary ? B * H_kv * S * row : 0), H_kv * S * row, S * row,
                     row};
  return at;
}

static void rotate(const struct call *call, const struct rotary *rotary, int64_t heads,
                   adamas_rows from, adamas_rows to) {
  for (int64_t b = 0; b < call->B; b++)
    for (int64_t h = 0; h < heads; h++)
      rotate_rows(rotary, call->dtype, (char *)from.data + b * from.stride_b + h * from.stride_h,
                  from.stride_token, call->start[b], call->count[b], call->D,
                  (char *)to.data + b * to.stride_b + h * to.stride_h);
}

/* All checks, and the queries and keys with their positions. */
static ort_status *prepare(struct call *call) {
  adamas_rows q, k;
  struct rotary rotary;
  ort_status *status = check_shapes(call);
  if (status) return status;
  size_t bytes = lay_out(call, 0, &q, &k);
  call->scratch = malloc(bytes);
  if (!call->scratch) return refuse("there is no memory for %zu bytes", bytes);
  lay_out(call, (uintptr_t)call->scratch, &q, &k);
  status = read_lengths(call);
  if (!status) status = read_sinks(call);
  if (status || !call->node->rotary) return status;
  status = check_rotary(call, &rotary);
  if (status) return status;
  rotate(call, &rotary, call->node->H, call->q, q);
  rotate(call, &rotary, call->node->H_kv, call->k, k);
  call->q = q;
  call->k = k;
  return NULL;
}

/* ---- the cache --------------------------------------------------------------------------------- */

static ort_status *open_outputs(struct call *call, ort_context *context) {
  int64_t past = code_block_tiles(call->in[PAST_CODES].axes[2], call->D, !!call->node->selection.tail);
  int64_t needed = (call->total + TILE - 1) / TILE;
  call->block = code_block_of(past > needed ? past : needed, call->D, !!call->node->selection.tail);
  int64_t B = call->B, H_kv = call->node->H_kv;
  const int64_t shapes[OUTPUTS][4] = {
      [OUTPUT] = {B, call->S, call->node->H * call->D},
      [PRESENT_KEY] = {B, H_kv, call->room, call->D},
      [PRESENT_VALUE] = {B, H_kv, call->room, call->D},
      [PRESENT_CODES] = {B, H_kv, call->block.bytes}};
  const size_t ranks[OUTPUTS] = {3, 4, 4, 3};
  for (int i = 0; i < OUTPUTS; i++) {
    ort_value *value = NULL;
    ort_status *status = api->output(context, (size_t)i, shapes[i], ranks[i], &value);
    if (!status && !value) status = refuse("output %d is not used; expected 4 outputs", i);
    if (!status) status = read_tensor(value, &call->out[i]);
    if (status) return status;
  }
  return NULL;
}

/* Keys or values: the past ones, unless past and present share memory, and then the new ones. */
static void extend_rows(const struct call *call, int past, int present, adamas_rows added) {
  int64_t row = call->D * call->item, H_kv = call->node->H_kv, held = call->in[past].axes[2];
  char *from = call->in[past].data, *to = call->out[present].data;
  for (int64_t b = 0; b < call->B; b++)
    for (int64_t h = 0; h < H_kv; h++, from += held * row, to += call->room * row) {
      const char *x = (const char *)added.data + b * added.stride_b + h * added.stride_h;
      if (call->in[past].data != call->out[present].data)
        memcpy(to, from, (size_t)(call->start[b] * row));
      for (int64_t t = 0; t < call->count[b]; t++)
        memcpy(to + (call->start[b] + t) * row, x + t * added.stride_token, (size_t)row);
    }
}

static void copy_codes(const struct call *call) {
  const char *from = call->in[PAST_CODES].data;
  char *to = call->out[PRESENT_CODES].data;
  int64_t bytes = call->in[PAST_CODES].axes[2], blocks = call->B * call->node->H_kv;
  int tail = !!call->node->selection.tail;
  if (from == to) return;
  if (bytes == call->block.bytes) {
    memcpy(to, from, (size_t)(blocks * bytes));
    return;
  }
  memset(to, 0, (size_t)(blocks * call->block.bytes));
  struct code_block old = code_block_of(code_block_tiles(bytes, call->D, tail), call->D, tail);
  for (int64_t i = 0; bytes && i < blocks; i++)
    code_block_grow(&old, from + i * bytes, &call->block, to + i * call->block.bytes, tail);
}

/* The tokens of a cache, from a sequence on. */
static adamas_rows cached(const struct call *call, int present, int64_t b) {
  int64_t row = call->D * call->item, head = call->room * row, sequence = call->node->H_kv * head;
  adamas_rows rows = {call->out[present].data + b * sequence, sequence, head, row};
  return rows;
}

/* Code tokens of some sequences that have the same blocks as the call. */
static ort_status *append(struct call *call, int64_t b, int64_t B, const int64_t *start,
                          const int64_t *count, adamas_rows k, adamas_rows v, int64_t S) {
  int tail = !!call->node->selection.tail;
  char *blocks = call->out[PRESENT_CODES].data + b * call->node->H_kv * call->block.bytes;
  call->keys.thresholds = call->node->thresholds;
  call->values.total = call->total_of_values + b * call->node->H_kv * call->D;
  code_block_place(&call->block, blocks, B, call->node->H_kv, &call->keys,
                   tail ? &call->values : NULL);
  int status = adamas_append_keys(&call->keys, call->dtype, k, S, start, count, 0);
  if (!status && tail)
    status = adamas_append_values(&call->values, call->dtype, v, S, start, count, 0);
  return of_library("past_codes", status);
}

/* Code all past tokens of a sequence whose codes are of another number of tokens: another operator
   read the prompt, or the sequence went back to fewer tokens. */
static ort_status *code_again(struct call *call, int64_t b) {
  int64_t H_kv = call->node->H_kv, bytes = H_kv * call->block.bytes;
  char *blocks = call->out[PRESENT_CODES].data + b * bytes;
  if (code_block_tokens(blocks) == call->start[b]) return NULL;
  memset(blocks, 0, (size_t)bytes);
  if (!call->start[b]) return NULL;
  return append(call, b, 1, NULL, NULL, cached(call, PRESENT_KEY, b),
                cached(call, PRESENT_VALUE, b), call->start[b]);
}

static ort_status *extend(struct call *call) {
  int64_t H_kv = call->node->H_kv;
  extend_rows(call, PAST_KEY, PRESENT_KEY, call->k);
  extend_rows(call, PAST_VALUE, PRESENT_VALUE, call->v);
  copy_codes(call);
  ort_status *status = NULL;
  for (int64_t b = 0; b < call->B && !status; b++) status = code_again(call, b);
  if (!status)
    status = append(call, 0, call->B, call->start, call->count, call->k, call->v, call->S);
  for (int64_t i = 0; i < call->B * H_kv && !status; i++)
    code_block_set_tokens(call->out[PRESENT_CODES].data + i * call->block.bytes,
                          call->lengths[i / H_kv]);
  return status;
}

/* ---- attention --------------------------------------------------------------------------------- */

/* Dense attention of the new tokens of a sequence. */
static ort_status *attend(const struct call *call, int64_t b) {
  const struct node *node = call->node;
  int64_t row = call->D * call->item, L = call->count[b];
  char *output = call->out[OUTPUT].data + b * call->S * node->H * row;
  adamas_rows q = call->q;
  q.data = (char *)q.data + b * q.stride_b;
  adamas_attention attention = {
      .size = sizeof attention, .B = 1, .H = node->H, .H_kv = node->H_kv, .L = L,
      .S = call->lengths[b], .D = call->D, .q_dtype = call->dtype, .kv_dtype = call->dtype, .q = q,
      .k = cached(call, PRESENT_KEY, b), .v = cached(call, PRESENT_VALUE, b),
      .scale = node->scale, .out = call->S > 1 ? call->rows : output, .lse = call->lse,
      .soft_cap = node->soft_cap, .sink_logits = call->sink_logits};
  if (L < call->S) memset(output, 0, (size_t)(call->S * node->H * row));
  if (!L) return NULL;
  int status = adamas_attend(&attention);
  for (int64_t h = 0; call->S > 1 && h < node->H; h++) /* (H, L, D) to (S, H, D) */
    for (int64_t t = 0; t < L; t++)
      memcpy(output + (t * node->H + h) * row, call->rows + (h * L + t) * row, (size_t)row);
  return of_library("dense attention", status);
}

static ort_status *step(struct call *call) {
  const struct node *node = call->node;
  adamas_step step = {
      .size = sizeof step, .H = node->H, .L = 1, .keys = &call->keys,
      .values = node->selection.tail ? &call->values : NULL, .selection = &node->selection,
      .lengths = call->lengths, .q_dtype = call->dtype, .kv_dtype = call->dtype, .q = call->q,
      .k = cached(call, PRESENT_KEY, 0), .v = cached(call, PRESENT_VALUE, 0), .S = call->room,
      .scale = node->scale, .out = call->out[OUTPUT].data, .lse = call->lse,
      .soft_cap = node->soft_cap, .sink_logits = call->sink_logits};
  return of_library("sparse attention", adamas_step_run(&step));
}

static ort_status *run_node(void *kernel, ort_context *context) {
  struct call call = {.node = kernel};
  ort_status *status = read_inputs(&call, context);
  if (!status) status = prepare(&call);
  if (!status) status = open_outputs(&call, context);
  if (!status) status = extend(&call);
  if (!status && call.S == 1 && call.node->selection.budget < longest(&call))
    status = step(&call);
  else
    for (int64_t b = 0; b < call.B && !status; b++) status = attend(&call, b);
  free(call.scratch);
  return status;
}

/* ---- registration ------------------------------------------------------------------------------ */

static const char *op_name(const ort_op *op) {
  (void)op;
  return NAME;
}
static const char *op_provider(const ort_op *op) {
  (void)op;
  return "CPUExecutionProvider";
}
static size_t op_inputs(const ort_op *op) {
  (void)op;
  return INPUTS;
}
static size_t op_outputs(const ort_op *op) {
  (void)op;
  return OUTPUTS;
}
static int op_memory(const ort_op *op, size_t index) {
  (void)op;
  (void)index;
  return 0;
}
static int input_kind(const ort_op *op, size_t index) {
  (void)op;
  int optional = index == KEY || index == VALUE || index == COS || index == SIN || index == HEAD_SINK;
  return optional ? ORT_OPTIONAL : ORT_REQUIRED;
}
static int output_kind(const ort_op *op, size_t index) {
  (void)op;
  (void)index;
  return ORT_REQUIRED;
}
static int input_type_of(size_t index, int number) {
  if (index == SEQLENS_K || index == TOTAL) return ORT_INT32;
  return index == PAST_CODES ? ORT_UINT8 : number;
}
static int input_float32(const ort_op *op, size_t index) {
  (void)op;
  return input_type_of(index, ORT_FLOAT32);
}
static int input_float16(const ort_op *op, size_t index) {
  (void)op;
  return input_type_of(index, ORT_FLOAT16);
}
static int output_float32(const ort_op *op, size_t index) {
  (void)op;
  return index == PRESENT_CODES ? ORT_UINT8 : ORT_FLOAT32;
}
static int output_float16(const ort_op *op, size_t index) {
  (void)op;
  return index == PRESENT_CODES ? ORT_UINT8 : ORT_FLOAT16;
}

/* One operator for each dtype, of one name: the session takes the one whose types fit. */
#define OPERATOR(dtype)                                                                          \
  {                                                                                              \
    .version = ORT_VERSION, .name = op_name, .provider = op_provider, .inputs = op_inputs,       \
    .outputs = op_outputs, .input_type = input_##dtype, .output_type = output_##dtype,           \
    .input_kind = input_kind, .output_kind = output_kind, .input_memory = op_memory,             \
    .create_kernel = create_node, .compute_kernel = run_node, .destroy_kernel = free             \
  }

static const ort_op operators[] = {OPERATOR(float32), OPERATOR(float16)};

/* The domain of the operators. Sessions of all kinds share it, so it is never released. */
static ort_status *make_domain(ort_domain **domain) {
  ort_status *status = api->create_domain("adamas", domain);
  for (size_t i = 0; i < sizeof operators / sizeof *operators && !status; i++)
    status = api->add_op(*domain, &operators[i]);
  return status;
}

/* ONNX Runtime looks for this name in the library that it is given. */
ADAMAS_API ort_status *RegisterCustomOps(ort_options *options, const ort_base *base) {
  static _Atomic(ort_domain *) shared;
  api = base->api(ORT_VERSION);
  if (!api) {
    const ort_api *first = base->api(1);
    return first ? first->create_status(ORT_FAIL, NAME ": expected ONNX Runtime 1.16 or later") : NULL;
  }
  ort_domain *domain = atomic_load(&shared);
  if (!domain) {
    ort_status *status = make_domain(&domain);
    if (status) return status;
    atomic_store(&shared, domain);
  }
  return api->add_domain(options, domain);
}

/* For the Python package: the last axis of codes with room for so many tokens. */
ADAMAS_API int64_t adamas_onnxruntime_code_bytes(int64_t tokens, int64_t D, int tail) {
  return code_block_of((tokens + TILE - 1) / TILE, D, tail).bytes;
}
