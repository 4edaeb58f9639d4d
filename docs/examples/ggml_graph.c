/* Sparse attention as a node of a ggml graph, over a cache of the layout of llama.cpp.

   A cache of 4,096 tokens grows by 100 tokens. Each step is a graph of its own: it writes the key
   and value of the new token, then a custom node codes the key and attends. Beside it runs ggml's
   own flash attention. The program ends with 1 if the two differ by more than the tolerances.

   docs/ggml.md says how to build it. */

#include <adamas.h>
#include <ggml-cpu.h>
#include <ggml.h>

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { D = 128, H = 16, H_KV = 4, ROOM = 4224, PROMPT = 4096, STEPS = 100, BUDGET = 128 };

/* ggml rounds queries to float16, which moves a logit of 16 by 0.008. Half of the steps drop all
   tokens but BUDGET. */
static const float TOLERANCE = 5e-3f, SPARSE_TOLERANCE = 2e-2f;

static void require(int holds, const char *message) {
  if (holds) return;
  fprintf(stderr, "ggml_graph: %s\n", message);
  exit(1);
}

static float number(void) {
  static unsigned state = 1;
  float sum = 0;
  for (int i = 0; i < 4; i++) {
    state = state * 1664525u + 1013904223u;
    sum += (float)(state >> 8) / (1 << 24) - 0.5f;
  }
  return sum * 1.7f;
}

/* A layer of the model: ggml's cache, and the codes of its keys. */
struct layer {
  struct ggml_tensor *k, *v; /* float16, [D, H_KV, ROOM]: token by token, as in llama.cpp */
  adamas_keys codes;
  int64_t coded; /* tokens that have codes */
};

/* What a node needs beside its tensors. It must live until the graph has run. */
struct node {
  struct layer *layer;
  int64_t budget;
  float lse[H];
};

/* A tensor [D, tokens, heads] as the library's array: the strides of ggml are in bytes too. */
static adamas_rows rows(const struct ggml_tensor *x) {
  return (adamas_rows){.data = x->data, .stride_b = (int64_t)x->nb[3],
                       .stride_h = (int64_t)x->nb[2], .stride_token = (int64_t)x->nb[1]};
}

/* The node: dst [D, H, 1] from q [D, 1, H], and from k and v [D, tokens, H_KV].
   One task runs it. The library has threads of its own. */
static void attend(struct ggml_tensor *dst, int task, int tasks, void *user) {
  (void)task, (void)tasks;
  struct node *node = user;
  struct layer *layer = node->layer;
  const struct ggml_tensor *q = dst->src[0], *k = dst->src[1], *v = dst->src[2];
  int64_t tokens = k->ne[1], start = layer->coded, added = tokens - start;
  adamas_rows fresh = rows(k);
  fresh.data = (char *)fresh.data + start * fresh.stride_token;
  int status = adamas_append_keys(&layer->codes, ADAMAS_FLOAT16, fresh, added, &start, NULL, 0);
  require(status == ADAMAS_OK, adamas_error(status));
  layer->coded = tokens;

  adamas_selection selection = {.size = sizeof selection, .query_bits = 4, .budget = node->budget};
  adamas_step step = {.size = sizeof step, .H = q->ne[2], .L = 1, .keys = &layer->codes,
                      .selection = &selection, .lengths = &tokens, .q_dtype = ADAMAS_FLOAT32,
                      .kv_dtype = ADAMAS_FLOAT16, .q = rows(q), .k = rows(k), .v = rows(v),
                      .S = tokens, .out = dst->data, .lse = node->lse};
  status = adamas_step_run(&step);
  require(status == ADAMAS_OK, adamas_error(status));
}

/* New rows x [D, H_KV, n] into the cache as the tokens from `first` on. */
static struct ggml_tensor *store(struct ggml_context *c, struct ggml_tensor *x,
                                 struct ggml_tensor *cache, int64_t first) {
  struct ggml_tensor *place = ggml_view_3d(c, cache, D, H_KV, x->ne[2], cache->nb[1], cache->nb[2],
                                           (size_t)first * cache->nb[2]);
  return ggml_cpy(c, x, place);
}

/* The first tokens of the cache as [D, tokens, H_KV], without a copy. */
static struct ggml_tensor *seen(struct ggml_context *c, struct ggml_tensor *cache, int64_t tokens) {
  struct ggml_tensor *view = ggml_view_3d(c, cache, D, H_KV, tokens, cache->nb[1], cache->nb[2], 0);
  return ggml_permute(c, view, 0, 2, 1, 3);
}

static struct ggml_tensor *random_rows(struct ggml_context *c, int64_t heads, int64_t n) {
  struct ggml_tensor *x = ggml_new_tensor_3d(c, GGML_TYPE_F32, D, heads, n);
  for (int64_t i = 0; i < D * heads * n; i++) ((float *)x->data)[i] = number();
  return x;
}

/* Queries [D, 1, H] that ask for one token of the cache: its logit is 15, and those of the others
   are near 0. Where the token is not there yet, its key is 0, and so is the query. */
static struct ggml_tensor *query(struct ggml_context *c, const struct layer *layer, int64_t token) {
  struct ggml_tensor *q = ggml_new_tensor_3d(c, GGML_TYPE_F32, D, 1, H);
  for (int h = 0; h < H; h++) {
    const char *key = (char *)layer->k->data + token * (int64_t)layer->k->nb[2] +
                      h / (H / H_KV) * (int64_t)layer->k->nb[1];
    float *row = (float *)q->data + h * D, squares = 0;
    ggml_fp16_to_fp32_row((const ggml_fp16_t *)key, row, D);
    for (int d = 0; d < D; d++) squares += row[d] * row[d];
    for (int d = 0; d < D && squares > 0; d++) row[d] *= 15 * sqrtf(D) / squares;
  }
  return q;
}

/* Write n tokens, and attend with the last one to `tokens` tokens: the largest difference. */
static float run(struct layer *layer, int64_t n, int64_t tokens, int64_t budget) {
  struct ggml_init_params params = {.mem_size = 96u << 20};
  struct ggml_context *c = ggml_init(params);
  require(c != NULL, "no memory");
  struct ggml_tensor *k = store(c, random_rows(c, H_KV, n), layer->k, tokens - n);
  struct ggml_tensor *v = store(c, random_rows(c, H_KV, n), layer->v, tokens - n);
  int64_t old = tokens - n, wanted = old ? tokens * 7919 % old : 0;
  if (old && tokens % 4 == 0) wanted = old - 1; /* the newest token that was there before */
  struct ggml_tensor *q = query(c, layer, wanted);
  struct ggml_tensor *keys = seen(c, layer->k, tokens), *values = seen(c, layer->v, tokens);
  struct node node = {.layer = layer, .budget = budget};
  struct ggml_tensor *inputs[] = {q, keys, values};
  struct ggml_tensor *sparse =
      ggml_custom_4d(c, GGML_TYPE_F32, D, H, 1, 1, inputs, 3, attend, 1, &node);
  struct ggml_tensor *dense = ggml_flash_attn_ext(c, q, keys, values, NULL, 1 / sqrtf(D), 0, 0);
  struct ggml_cgraph *graph = ggml_new_graph(c);
  ggml_build_forward_expand(graph, k); /* the cache is written before it is read */
  ggml_build_forward_expand(graph, v);
  ggml_build_forward_expand(graph, sparse);
  ggml_build_forward_expand(graph, dense);
  require(ggml_graph_compute_with_ctx(c, graph, 2) == GGML_STATUS_SUCCESS, "the graph failed");
  float largest = 0;
  for (int i = 0; i < D * H; i++) {
    float difference = fabsf(((float *)sparse->data)[i] - ((float *)dense->data)[i]);
    if (!(difference <= largest)) largest = difference; /* NaN too */
  }
  ggml_free(c);
  return largest;
}

int main(void) {
  struct ggml_init_params params = {.mem_size = 16u << 20};
  struct ggml_context *c = ggml_init(params);
  require(c != NULL, "no memory");
  struct layer layer = {.k = ggml_new_tensor_3d(c, GGML_TYPE_F16, D, H_KV, ROOM),
                        .v = ggml_new_tensor_3d(c, GGML_TYPE_F16, D, H_KV, ROOM)};
  memset(layer.k->data, 0, ggml_nbytes(layer.k)); /* ggml leaves new memory as it is */
  float thresholds[H_KV][3];
  for (int h = 0; h < H_KV; h++)
    for (int i = 0; i < 3; i++) thresholds[h][i] = 0.996f * (float)(i - 1);
  layer.codes = (adamas_keys){.size = sizeof layer.codes, .B = 1, .H_kv = H_KV, .T = ROOM / 64,
                              .D = D, .thresholds = thresholds[0]};
  void *memory = calloc(adamas_place_keys(&layer.codes, 1, 2, NULL), 1);
  require(memory && adamas_place_keys(&layer.codes, 1, 2, memory), "no memory for codes");

  float all = run(&layer, PROMPT, PROMPT, PROMPT), sparse = 0;
  for (int64_t tokens = PROMPT + 1; tokens <= PROMPT + STEPS; tokens++) {
    int whole = tokens % 2;
    float difference = run(&layer, 1, tokens, whole ? tokens : BUDGET);
    float *largest = whole ? &all : &sparse;
    if (!(difference <= *largest)) *largest = difference;
  }
  printf("%d steps after %d tokens, differences from ggml_flash_attn_ext: %.1e with all tokens, "
         "%.1e with %d\n", STEPS, PROMPT, all, sparse, BUDGET);
  free(memory);
  ggml_free(c);
  require(all <= TOLERANCE && sparse <= SPARSE_TOLERANCE, "the differences are too large");
  return 0;
}
