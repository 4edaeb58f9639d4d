/* The calls that JAX's compiled programs make, by the foreign function interface of XLA. No Python
   runs in them. adamas_core/jax.py says what each does, and gives all arrays without gaps. */

#include <algorithm>
#include <cmath>
#include <cstring>
#include <string>
#include <vector>

#include "adamas.h"
#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;
using ffi::AnyBuffer;
using Floats = ffi::Buffer<ffi::F32>;
using Integers = ffi::Buffer<ffi::S32>;
template <class T>
using Result = ffi::Result<T>;

static ffi::Error wrong(const std::string &text) {
  return ffi::Error(ffi::ErrorCode::kInvalidArgument, text);
}

static ffi::Error done(const char *where, int status) {
  if (status == ADAMAS_OK) return ffi::Error::Success();
  return wrong(std::string(where) + ": " + adamas_error(status));
}

/* -1 for a dtype that libadamas refuses. */
static int dtype_of(const AnyBuffer &x) {
  switch (x.element_type()) {
    case ffi::F32: return ADAMAS_FLOAT32;
    case ffi::F16: return ADAMAS_FLOAT16;
    case ffi::BF16: return ADAMAS_BFLOAT16;
    default: return -1;
  }
}

static int64_t bytes_of(int dtype) { return dtype == ADAMAS_FLOAT32 ? 4 : 2; }

/* Rows (B, heads, tokens, D) without gaps. */
static adamas_rows rows_of(const AnyBuffer &x) {
  auto shape = x.dimensions();
  int64_t row = shape[3] * bytes_of(dtype_of(x)), head = shape[2] * row;
  return {x.untyped_data(), shape[1] * head, head, row};
}

static adamas_rows from_sequence(adamas_rows x, int64_t b) {
  x.data = static_cast<char *>(x.data) + b * x.stride_b;
  return x;
}

static std::vector<int64_t> int64s(const Integers &x) {
  return std::vector<int64_t>(x.typed_data(), x.typed_data() + x.element_count());
}

static bool is_finite(const AnyBuffer &x, int64_t first, int64_t count) {
  auto all = [=](const auto *bits, uint32_t exponent) {
    return std::all_of(bits + first, bits + first + count,
                       [=](auto x) { return (x & exponent) != exponent; });
  };
  const void *data = x.untyped_data();
  switch (x.element_type()) {
    case ffi::F32: return all(static_cast<const uint32_t *>(data), 0x7f800000);
    case ffi::F16: return all(static_cast<const uint16_t *>(data), 0x7c00);
    default: return all(static_cast<const uint16_t *>(data), 0x7f80);
  }
}

/* ---- the cache --------------------------------------------------------------------------------- */

/* The arrays of a cache, in the order of Cache._arrays() in adamas_core/jax.py. Plain codes have the
   first three, centered ones six, and those with a tail all. */
enum { K, V, PLANES, MEANS, SCALES, OPEN_TILE, THIRD, THIRD_SCALES,
       V_CODES, V_SCALES, BASES, SUMS, TOTAL, ARRAYS };

struct Cache {
  adamas_keys keys{};
  adamas_values values{};
  adamas_rows k, v;
  int64_t S, Dv;
  int dtype;

  Cache(const std::vector<AnyBuffer> &arrays, const Floats &thresholds)
      : k(rows_of(arrays[K])), v(rows_of(arrays[V])), dtype(dtype_of(arrays[K])) {
    auto at = [&](size_t i) {
      return adamas_heads{i < arrays.size() ? arrays[i].untyped_data() : nullptr, 0, 0};
    };
    auto shape = arrays[K].dimensions();
    S = shape[2];
    keys.size = sizeof keys;
    keys.B = values.B = shape[0];
    keys.H_kv = values.H_kv = shape[1];
    keys.D = shape[3];
    values.D = Dv = arrays[V].dimensions()[3];
    keys.T = values.T = arrays[PLANES].dimensions()[3];
    keys.planes = at(PLANES);
    keys.thresholds = thresholds.typed_data();
    keys.means = at(MEANS);
    keys.scales = at(SCALES);
    keys.open_tile = at(OPEN_TILE);
    keys.third = at(THIRD);
    keys.third_scales = at(THIRD_SCALES);
    values.size = sizeof values;
    values.codes = at(V_CODES);
    values.scales = at(V_SCALES);
    values.bases = at(BASES);
    values.sums = at(SUMS);
    values.total = static_cast<float *>(at(TOTAL).data);
  }

  bool has_tail() const { return values.codes.data != nullptr; }
};

static std::vector<AnyBuffer> arrays_of(const ffi::RemainingArgs &given) {
  std::vector<AnyBuffer> arrays;
  for (size_t i = 0; i < given.size(); i++)
    if (auto x = given.get<AnyBuffer>(i)) arrays.push_back(*x);
  return arrays;
}

/* ---- append ------------------------------------------------------------------------------------ */

static std::string sequence(int64_t b) { return "append: sequence " + std::to_string(b); }

/* What is wrong with the new tokens, or nothing. */
static std::string wrong_tokens(const Cache &cache, const std::vector<int64_t> &start,
                                const std::vector<int64_t> &count, const AnyBuffer &k,
                                const AnyBuffer &v) {
  auto shape = k.dimensions();
  int64_t H = shape[1], N = shape[2], D = shape[3], Dv = v.dimensions()[3];
  for (size_t b = 0; b < start.size(); b++) {
    if (count[b] < 0 || count[b] > N)
      return sequence(b) + " has a count of " + std::to_string(count[b]) + "; expected 0 to " +
             std::to_string(N);
    if (start[b] < 0 || start[b] > cache.S - count[b])
      return sequence(b) + " has " + std::to_string(start[b]) + " tokens and gets " +
             std::to_string(count[b]) + " more; expected at most " + std::to_string(cache.S) +
             " in all, the capacity of the cache";
    for (int64_t h = 0; h < H; h++) {
      int64_t first = (b * H + h) * N;
      if (!is_finite(k, first * D, count[b] * D))
        return sequence(b) + ": k holds NaN or infinities";
      if (cache.has_tail() && !is_finite(v, first * Dv, count[b] * Dv))
        return sequence(b) + ": v holds NaN or infinities, and the selection has a tail";
    }
  }
  return "";
}

static void write_rows(const AnyBuffer &x, adamas_rows to, const std::vector<int64_t> &start,
                       const std::vector<int64_t> &count) {
  adamas_rows from = rows_of(x);
  for (size_t b = 0; b < start.size(); b++)
    for (int64_t h = 0; h < x.dimensions()[1]; h++)
      std::memcpy(static_cast<char *>(to.data) + b * to.stride_b + h * to.stride_h +
                      start[b] * to.stride_token,
                  static_cast<char *>(from.data) + b * from.stride_b + h * from.stride_h,
                  count[b] * from.stride_token);
}

static ffi::Error Append(AnyBuffer k, AnyBuffer v, Integers lengths, Integers counts,
                         Floats thresholds, ffi::RemainingArgs given, ffi::RemainingRets results) {
  std::vector<AnyBuffer> before = arrays_of(given), after;
  for (size_t i = 0; i < results.size(); i++)
    if (auto x = results.get<AnyBuffer>(i)) after.push_back(**x);
  Cache cache(after, thresholds);
  std::vector<int64_t> start = int64s(lengths), count = int64s(counts);
  std::string text = wrong_tokens(cache, start, count, k, v);
  if (!text.empty()) return wrong(text);
  for (size_t i = 0; i < after.size(); i++)
    if (after[i].untyped_data() != before[i].untyped_data())
      std::memcpy(after[i].untyped_data(), before[i].untyped_data(), after[i].size_bytes());
  write_rows(k, cache.k, start, count);
  write_rows(v, cache.v, start, count);
  int64_t N = k.dimensions()[2];
  int status = adamas_append_keys(&cache.keys, cache.dtype, rows_of(k), N, start.data(),
                                  count.data(), 0);
  if (status == ADAMAS_OK && cache.has_tail())
    status = adamas_append_values(&cache.values, cache.dtype, rows_of(v), N, start.data(),
                                  count.data(), 0);
  return done("append", status);
}

/* ---- attention --------------------------------------------------------------------------------- */

/* The result of queries (B, H, L, D): out (B, H, L, Dv), which may be absent, and lse. */
struct Attended {
  char *out;
  float *lse;
};

struct Softmax {
  double scale, soft_cap;
  const float *sink_logits; /* (H,), or NULL */

  explicit Softmax(const ffi::Dictionary &options)
      : scale(options.get<double>("scale").value()),
        soft_cap(options.get<double>("soft_cap").value()) {
    auto sinks = options.get<ffi::Span<const float>>("sink_logits").value();
    sink_logits = sinks.size() ? sinks.begin() : nullptr;
  }
};

static adamas_attention attention_of(const AnyBuffer &q, adamas_rows k, adamas_rows v, int dtype,
                                     int64_t Dv, const Softmax &softmax, Attended to) {
  auto shape = q.dimensions();
  adamas_attention a{};
  a.size = sizeof a;
  a.B = shape[0];
  a.H = shape[1];
  a.L = shape[2];
  a.D = shape[3];
  a.Dv = Dv;
  a.q_dtype = dtype_of(q);
  a.kv_dtype = dtype;
  a.q = rows_of(q);
  a.k = k;
  a.v = v;
  a.scale = softmax.scale;
  a.soft_cap = softmax.soft_cap;
  a.sink_logits = softmax.sink_logits;
  a.out = to.out;
  a.lse = to.lse;
  return a;
}

/* Attention to every token of each sequence. */
static int attend_all(const AnyBuffer &q, const Cache &cache, const std::vector<int64_t> &lengths,
                      const Softmax &softmax, Attended to) {
  auto shape = q.dimensions();
  int64_t rows = shape[1] * shape[2], bytes = rows * cache.Dv * bytes_of(dtype_of(q));
  bool equal = std::all_of(lengths.begin(), lengths.end(), [&](auto n) { return n == lengths[0]; });
  int64_t B = equal ? shape[0] : 1;
  for (int64_t b = 0; b < shape[0]; b += B) {
    Attended own{to.out + b * bytes, to.lse + b * rows};
    if (lengths[b] == 0) {
      std::memset(own.out, 0, B * bytes);
      for (int64_t i = 0; i < B * rows; i++)
        own.lse[i] = softmax.sink_logits ? softmax.sink_logits[i / shape[2] % shape[1]] : -INFINITY;
      continue;
    }
    adamas_attention a = attention_of(q, from_sequence(cache.k, b), from_sequence(cache.v, b),
                                      cache.dtype, cache.Dv, softmax, own);
    a.q = from_sequence(a.q, b);
    a.B = B;
    a.H_kv = cache.keys.H_kv;
    a.S = lengths[b];
    int status = adamas_attend(&a);
    if (status) return status;
  }
  return ADAMAS_OK;
}

/* A sequence without tokens may have queries; one with fewer tokens than queries may not. */
static std::string wrong_lengths(const char *where, int64_t L, const Cache &cache,
                                 const std::vector<int64_t> &lengths) {
  for (size_t b = 0; b < lengths.size(); b++)
    if ((lengths[b] < L && lengths[b] != 0) || lengths[b] > cache.S)
      return std::string(where) + ": q has " + std::to_string(L) + " tokens and sequence " +
             std::to_string(b) + " of the cache " + std::to_string(lengths[b]) +
             "; expected the keys and values of these tokens to be appended first";
  return "";
}

static ffi::Error Dense(AnyBuffer q, Integers lengths, Floats thresholds, ffi::RemainingArgs given,
                        Result<AnyBuffer> out, Result<Floats> lse, ffi::Dictionary options) {
  Cache cache(arrays_of(given), thresholds);
  std::vector<int64_t> each = int64s(lengths);
  std::string text = wrong_lengths("decode_attention", q.dimensions()[2], cache, each);
  if (!text.empty()) return wrong(text);
  Attended to{static_cast<char *>(out->untyped_data()), lse->typed_data()};
  return done("decode_attention", attend_all(q, cache, each, Softmax(options), to));
}

static ffi::Error Attend(AnyBuffer q, AnyBuffer k, AnyBuffer v, Integers indices,
                         Result<AnyBuffer> out, Result<Floats> lse, ffi::Dictionary options) {
  Attended to{static_cast<char *>(out->untyped_data()), lse->typed_data()};
  adamas_attention a = attention_of(q, rows_of(k), rows_of(v), dtype_of(k), v.dimensions()[3],
                                    Softmax(options), to);
  a.H_kv = k.dimensions()[1];
  a.S = k.dimensions()[2];
  a.indices = indices.typed_data();
  a.K = indices.dimensions()[3];
  return done("attend", adamas_attend(&a));
}

/* ---- the step ---------------------------------------------------------------------------------- */

/* The tokens that each query sees, where the budget covers them all. */
static void all_indices(const AnyBuffer &q, const std::vector<int64_t> &lengths, Integers &to) {
  auto shape = q.dimensions();
  int64_t budget = to.dimensions()[3];
  int32_t *row = to.typed_data();
  for (int64_t b = 0; b < shape[0]; b++)
    for (int64_t h = 0; h < shape[1]; h++)
      for (int64_t l = 0; l < shape[2]; l++, row += budget)
        for (int64_t i = 0; i < budget; i++)
          row[i] = i <= lengths[b] - shape[2] + l ? static_cast<int32_t>(i) : -1;
}

static ffi::Error step(const char *where, const AnyBuffer &q, const Integers &lengths,
                       const Floats &thresholds, const ffi::RemainingArgs &given,
                       const ffi::Dictionary &options, Integers &indices, Attended to) {
  Cache cache(arrays_of(given), thresholds);
  std::vector<int64_t> each = int64s(lengths);
  auto shape = q.dimensions();
  std::string text = wrong_lengths(where, shape[2], cache, each);
  if (!text.empty()) return wrong(text);
  Softmax softmax(options);
  int64_t budget = indices.dimensions()[3], longest = *std::max_element(each.begin(), each.end());
  if (budget >= longest) {
    all_indices(q, each, indices);
    return done(where, to.out ? attend_all(q, cache, each, softmax, to) : ADAMAS_OK);
  }
  auto option = [&](const char *name) { return options.get<int64_t>(name).value(); };
  adamas_selection selection{};
  selection.size = sizeof selection;
  selection.query_bits = static_cast<int>(option("query_bits"));
  selection.budget = budget;
  selection.sinks = option("sinks");
  selection.recent = option("recent");
  selection.refine = option("refine");
  selection.group = static_cast<int>(option("group"));
  selection.tail = to.out ? option("tail") : 0;
  adamas_step step{};
  step.size = sizeof step;
  step.H = shape[1];
  step.L = shape[2];
  step.keys = &cache.keys;
  step.values = selection.tail ? &cache.values : nullptr;
  step.selection = &selection;
  step.lengths = each.data();
  step.q_dtype = dtype_of(q);
  step.kv_dtype = cache.dtype;
  step.q = rows_of(q);
  step.k = cache.k;
  step.v = cache.v;
  step.S = cache.S;
  step.Dv = cache.Dv;
  step.scale = softmax.scale;
  step.soft_cap = softmax.soft_cap;
  step.sink_logits = softmax.sink_logits;
  step.indices = indices.typed_data();
  step.out = to.out;
  step.lse = to.lse;
  return done(where, adamas_step_run(&step));
}

static ffi::Error Step(AnyBuffer q, Integers lengths, Floats thresholds, ffi::RemainingArgs given,
                       Result<AnyBuffer> out, Result<Floats> lse, Result<Integers> indices,
                       ffi::Dictionary options) {
  Attended to{static_cast<char *>(out->untyped_data()), lse->typed_data()};
  return step("decode_attention", q, lengths, thresholds, given, options, *indices, to);
}

static ffi::Error Select(AnyBuffer q, Integers lengths, Floats thresholds, ffi::RemainingArgs given,
                         Result<Integers> indices, ffi::Dictionary options) {
  return step("select_topk", q, lengths, thresholds, given, options, *indices, {nullptr, nullptr});
}

/* ---- what XLA finds ---------------------------------------------------------------------------- */

#define CACHE Arg<Integers>().Arg<Floats>().RemainingArgs()

XLA_FFI_DEFINE_HANDLER_SYMBOL(adamas_jax_append, Append,
                              ffi::Ffi::Bind().Arg<AnyBuffer>().Arg<AnyBuffer>().Arg<Integers>()
                                  .CACHE.RemainingRets());
XLA_FFI_DEFINE_HANDLER_SYMBOL(adamas_jax_step, Step,
                              ffi::Ffi::Bind().Arg<AnyBuffer>().CACHE.Ret<AnyBuffer>()
                                  .Ret<Floats>().Ret<Integers>().Attrs());
XLA_FFI_DEFINE_HANDLER_SYMBOL(adamas_jax_select, Select,
                              ffi::Ffi::Bind().Arg<AnyBuffer>().CACHE.Ret<Integers>().Attrs());
XLA_FFI_DEFINE_HANDLER_SYMBOL(adamas_jax_dense, Dense,
                              ffi::Ffi::Bind().Arg<AnyBuffer>().CACHE.Ret<AnyBuffer>()
                                  .Ret<Floats>().Attrs());
XLA_FFI_DEFINE_HANDLER_SYMBOL(adamas_jax_attend, Attend,
                              ffi::Ffi::Bind().Arg<AnyBuffer>().Arg<AnyBuffer>().Arg<AnyBuffer>()
                                  .Arg<Integers>().Ret<AnyBuffer>().Ret<Floats>().Attrs());
