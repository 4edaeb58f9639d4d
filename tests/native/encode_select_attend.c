/* Codes of keys and values, a selection, and attention in every form. The program checks what can be
   known without another implementation, and ends with 0 if all of it holds. */

#include <adamas.h>

#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

enum { B = 2, H = 6, H_KV = 2, S = 1500, D = 64, T = 24, K = 40, CALLERS = 3 };

#define REQUIRE(condition)                                             \
  do {                                                                 \
    if (!(condition)) {                                                \
      fprintf(stderr, "line %d: %s is false\n", __LINE__, #condition); \
      exit(1);                                                         \
    }                                                                  \
  } while (0)
#define OK(call)                                                          \
  do {                                                                    \
    int status = (call);                                                  \
    if (status != ADAMAS_OK) {                                            \
      fprintf(stderr, "line %d: %s\n", __LINE__, adamas_error(status));   \
      exit(1);                                                            \
    }                                                                     \
  } while (0)

static unsigned state = 1;

/* About normal: a sum of four uniform numbers. */
static float number(void) {
  float sum = 0;
  for (int i = 0; i < 4; i++) {
    state = state * 1664525u + 1013904223u;
    sum += (float)(state >> 8) / (1 << 24) - 0.5f;
  }
  return sum * 1.7f;
}

static float *numbers(size_t count) {
  float *x = malloc(count * sizeof *x);
  REQUIRE(x);
  for (size_t i = 0; i < count; i++) x[i] = number();
  return x;
}

static void *zeros(size_t bytes) {
  void *memory = calloc(bytes, 1);
  REQUIRE(memory);
  return memory;
}

struct data {
  adamas_keys keys;
  adamas_values values;
  adamas_selection selection;
  int64_t lengths[B];
  float *q, *k, *v, *bases, *total;
  void *key_memory, *codes, *scales;
};

static const float thresholds[3 * H_KV] = {-0.996f, 0, 0.996f, -0.996f, 0, 0.996f};

static void make_values(struct data *data) {
  data->bases = zeros(sizeof(float) * B * H_KV * 2 * D);
  data->total = zeros(sizeof(float) * B * H_KV * D);
  for (int bh = 0; bh < B * H_KV; bh++)
    for (int s = 0; s < data->lengths[bh / H_KV]; s++)
      for (int d = 0; d < D; d++) {
        float x = data->v[((size_t)bh * S + s) * D + d];
        data->total[bh * D + d] += x;
        if (s == 0) data->bases[bh * 2 * D + d] = x;
        if (s < 64) data->bases[bh * 2 * D + D + d] += x / 64;
      }
  data->codes = zeros((size_t)B * H_KV * T * 64 * 2 * 8);
  data->scales = zeros((size_t)B * H_KV * T * 64);
  adamas_values values = {.size = sizeof values, .B = B, .H_kv = H_KV, .T = T, .D = D,
                          .codes = {data->codes, 0, 0}, .scales = {data->scales, 0, 0},
                          .bases = {data->bases, 0, 0}, .total = data->total};
  data->values = values;
  adamas_rows v = {data->v, 0, 0, 0};
  OK(adamas_append_values(&data->values, ADAMAS_FLOAT32, v, S, NULL, data->lengths, 0));
}

static void make(struct data *data) {
  memset(data, 0, sizeof *data);
  data->lengths[0] = S;
  data->lengths[1] = S - 333;
  data->q = numbers((size_t)B * H * D);
  data->k = numbers((size_t)B * H_KV * S * D);
  data->v = numbers((size_t)B * H_KV * S * D);
  adamas_keys keys = {.size = sizeof keys, .B = B, .H_kv = H_KV, .T = T, .D = D,
                      .thresholds = thresholds};
  data->key_memory = zeros(adamas_place_keys(&keys, 1, 3, NULL));
  REQUIRE(adamas_place_keys(&keys, 1, 3, data->key_memory));
  data->keys = keys;
  /* All but ten keys, and then those ten. */
  int64_t first[B], ten[B] = {10, 10};
  for (int b = 0; b < B; b++) first[b] = data->lengths[b] - 10;
  adamas_rows k = {data->k, 0, 0, 0};
  OK(adamas_append_keys(&data->keys, ADAMAS_FLOAT32, k, S, NULL, first, 0));
  for (int b = 0; b < B; b++) {
    adamas_keys one = data->keys;
    one.B = 1;
    one.to_low = (int64_t)B * H_KV * T * 64 * 8;
    adamas_heads *parts[] = {&one.planes, &one.means, &one.scales, &one.open_tile,
                             &one.third, &one.third_scales};
    int64_t bytes[] = {H_KV * T * 64 * 8, H_KV * T * 64 * 2, H_KV * T * 64,
                       H_KV * 64 * 64 * 4, H_KV * T * 64 * 8, H_KV * T * 64};
    for (int i = 0; i < 6; i++) parts[i]->data = (char *)parts[i]->data + b * bytes[i];
    adamas_rows rest = {data->k + ((size_t)b * H_KV * S + first[b]) * D, 0, (int64_t)S * D * 4,
                        D * 4};
    OK(adamas_append_keys(&one, ADAMAS_FLOAT32, rest, 10, &first[b], &ten[b], 1));
  }
  make_values(data);
  adamas_selection selection = {.size = sizeof selection, .query_bits = 4, .budget = K,
                                .sinks = 2, .recent = 1, .refine = 2};
  data->selection = selection;
}

static void release(struct data *data) {
  void *memory[] = {data->q,     data->k,          data->v,     data->bases,
                    data->total, data->key_memory, data->codes, data->scales};
  for (int i = 0; i < 8; i++) free(memory[i]);
}

static adamas_step step_of(const struct data *data, int32_t *indices, float *out, float *lse) {
  adamas_step step = {.size = sizeof step, .H = H, .L = 1, .keys = &data->keys,
                      .values = &data->values, .selection = &data->selection,
                      .lengths = data->lengths, .q = {data->q, 0, 0, 0}, .k = {data->k, 0, 0, 0},
                      .v = {data->v, 0, 0, 0}, .S = S, .indices = indices, .out = out, .lse = lse,
                      .threads = 4};
  return step;
}

static void check_indices(const struct data *data, const int32_t *indices) {
  for (int row = 0; row < B * H; row++) {
    const int32_t *own = indices + row * K;
    int length = (int)data->lengths[row / H];
    REQUIRE(own[0] == 0 && own[1] == 1 && own[K - 1] == length - 1);
    for (int i = 1; i < K; i++) REQUIRE(own[i - 1] < own[i] && own[i] < length);
  }
}

static int close_to(const float *a, const float *b, size_t count) {
  for (size_t i = 0; i < count; i++)
    if (!(fabsf(a[i] - b[i]) <= 1e-5f)) return 0;
  return 1;
}

static void check_steps(struct data *data) {
  static int32_t indices[B * H * K];
  static float out[B * H * D], again[B * H * D], lse[B * H], lse_again[B * H];
  adamas_step step = step_of(data, indices, out, lse);
  OK(adamas_step_run(&step));
  check_indices(data, indices);

  /* Attention over the chosen tokens is the same in a call of its own. */
  adamas_attention attention = {.size = sizeof attention, .B = B, .H = H, .H_kv = H_KV, .L = 1,
                                .S = S, .D = D, .q = step.q, .k = step.k, .v = step.v,
                                .indices = indices, .K = K, .out = again, .lse = lse_again};
  OK(adamas_attend(&attention));
  REQUIRE(close_to(out, again, B * H * D) && close_to(lse, lse_again, B * H));

  /* With a workspace of the caller. */
  size_t bytes = adamas_step_workspace(&step);
  REQUIRE(bytes > 0);
  step.workspace = malloc(bytes);
  step.workspace_bytes = bytes;
  step.out = again;
  OK(adamas_step_run(&step));
  REQUIRE(!memcmp(out, again, sizeof out));
  step.workspace_bytes--;
  REQUIRE(adamas_step_run(&step) == ADAMAS_ERROR_WORKSPACE);
  free(step.workspace);

  /* A tail has the mass of all tokens. */
  step.workspace = NULL;
  data->selection.tail = 100;
  step.lse = lse_again;
  OK(adamas_step_run(&step));
  for (int row = 0; row < B * H; row++) REQUIRE(lse_again[row] > lse[row]);
  data->selection.tail = 0;

  /* Groups choose together. */
  data->selection.refine = 0;
  data->selection.group = 1;
  OK(adamas_step_run(&step));
  check_indices(data, indices);
  for (int row = 1; row < B * H; row++)
    if (row % (H / H_KV))
      REQUIRE(!memcmp(indices + row * K, indices + (row - 1) * K, K * sizeof *indices));
  data->selection.group = 0;
  data->selection.refine = 2;
  REQUIRE(data->selection.budget == K);
}

/* A sink as large as the lse takes half of all weights. A cap far above the logits changes nothing.
   The first coordinates of the values alone give the first ones of the output. */
static void check_softmax(struct data *data) {
  enum { DV = D / 2 + 1 };
  static float out[B * H * D], again[B * H * D], lse[B * H], lse_again[B * H], sinks[H];
  for (int tail = 0; tail <= 100; tail += 100) {
    data->selection.tail = tail;
    adamas_step step = step_of(data, NULL, out, lse);
    OK(adamas_step_run(&step));
    for (int h = 0; h < H; h++) sinks[h] = h ? lse[h] : -INFINITY; /* of the first sequence */
    step.sink_logits = sinks;
    step.soft_cap = 1e7;
    step.out = again;
    step.lse = lse_again;
    OK(adamas_step_run(&step));
    for (int h = 0; h < H; h++) {
      float share = h ? 0.5f : 1.0f;
      REQUIRE(fabsf(lse_again[h] - lse[h] + logf(share)) < 1e-5f);
      for (int i = h * D; i < (h + 1) * D; i++) REQUIRE(fabsf(again[i] - share * out[i]) < 1e-5f);
    }
  }
  data->selection.tail = 0;
  adamas_step step = step_of(data, NULL, out, lse);
  OK(adamas_step_run(&step));
  step.Dv = DV;
  step.v = (adamas_rows){data->v, (int64_t)H_KV * S * D * 4, (int64_t)S * D * 4, D * 4};
  step.values = NULL;
  step.out = again;
  OK(adamas_step_run(&step));
  for (int row = 0; row < B * H; row++) REQUIRE(close_to(again + row * DV, out + row * D, DV));
}

/* Dense attention, and attention over all tokens by their indices. */
static void check_dense(const struct data *data) {
  static float out[H * D], again[H * D], lse[H], lse_again[H];
  int32_t *all = malloc(sizeof *all * H * S);
  REQUIRE(all);
  for (int i = 0; i < H * S; i++) all[i] = i % S;
  adamas_attention a = {.size = sizeof a, .B = 1, .H = H, .H_kv = H_KV, .L = 1, .S = S, .D = D,
                        .q = {data->q, 0, 0, 0}, .k = {data->k, 0, 0, 0}, .v = {data->v, 0, 0, 0},
                        .out = out, .lse = lse};
  OK(adamas_attend(&a));
  a.indices = all;
  a.K = S;
  a.out = again;
  a.lse = lse_again;
  OK(adamas_attend(&a));
  REQUIRE(close_to(out, again, H * D) && close_to(lse, lse_again, H));
  all[3] = S;
  REQUIRE(adamas_attend(&a) == ADAMAS_ERROR_INDEX);
  free(all);
}

static void *call_often(void *given) {
  const struct data *data = given;
  static float first[B * H * D];
  float out[B * H * D], lse[B * H];
  (void)first;
  adamas_step step = step_of(data, NULL, out, lse);
  for (int i = 0; i < 20; i++) OK(adamas_step_run(&step));
  return NULL;
}

static void check_threads(struct data *data) {
  pthread_t callers[CALLERS];
  for (int i = 0; i < CALLERS; i++)
    REQUIRE(!pthread_create(&callers[i], NULL, call_often, data));
  for (int i = 0; i < CALLERS; i++) REQUIRE(!pthread_join(callers[i], NULL));
}

static void check_fork(struct data *data) {
  pid_t child = fork();
  REQUIRE(child >= 0);
  if (child == 0) {
    call_often(data);
    _exit(0);
  }
  int status;
  REQUIRE(waitpid(child, &status, 0) == child && WIFEXITED(status) && !WEXITSTATUS(status));
  call_often(data);
}

int main(int count, char **arguments) {
  struct data data;
  REQUIRE(adamas_abi() == ADAMAS_ABI);
  make(&data);
  check_steps(&data);
  check_softmax(&data);
  check_dense(&data);
  check_threads(&data);
  if (count < 2 || strcmp(arguments[1], "no-fork")) check_fork(&data);
  release(&data);
  puts(adamas_level());
  return 0;
}
