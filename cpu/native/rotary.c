/* Rotary positions: each pair of a row's coordinates turns by the angle of its position. */

#include "rotary.h"

#include <string.h>

static float of_bits(uint32_t bits) {
  float x;
  memcpy(&x, &bits, sizeof x);
  return x;
}

static float of_half(uint16_t x) {
  uint32_t sign = (uint32_t)(x & 0x8000) << 16, rest = x & 0x7fff;
  if (rest >= 0x7c00) return of_bits(sign | 0x7f800000 | (rest & 0x3ff) << 13);
  /* The bits as those of a float32, times 2^112, are the value, subnormal numbers included. */
  return of_bits(sign | rest << 13) * 0x1p112f;
}

/* The nearest float16; of two the even one. */
static uint16_t to_half(float x) {
  uint32_t bits;
  memcpy(&bits, &x, sizeof bits);
  uint16_t sign = bits >> 16 & 0x8000;
  bits &= 0x7fffffff;
  if (bits > 0x7f800000) return sign | 0x7e00;
  if (bits >= 0x477ff000) return sign | 0x7c00; /* 65520 and above */
  if (bits < 0x38800000) {                      /* below 2^-14: a multiple of 2^-24 */
    float shifted = of_bits(bits) + 0.5f;       /* whose last bit stands for 2^-24 */
    memcpy(&bits, &shifted, sizeof bits);
    return sign | (uint16_t)(bits - 0x3f000000);
  }
  bits += 0xfff + (bits >> 13 & 1);
  return sign | (uint16_t)((bits - 0x38000000) >> 13);
}

static float read_one(const char *x, int dtype, int64_t i) {
  if (dtype == ADAMAS_FLOAT32) return ((const float *)x)[i];
  return of_half(((const uint16_t *)x)[i]);
}

static void write_one(char *x, int dtype, int64_t i, float value) {
  if (dtype == ADAMAS_FLOAT32)
    ((float *)x)[i] = value;
  else
    ((uint16_t *)x)[i] = to_half(value);
}

void rotate_rows(const struct rotary *rotary, int dtype, const char *x, int64_t stride,
                 int64_t position, int64_t tokens, int64_t D, char *out) {
  int64_t half = rotary->half, step = rotary->interleaved ? 2 : 1, apart = step == 2 ? 1 : half;
  int64_t item = dtype == ADAMAS_FLOAT32 ? 4 : 2;
  for (int64_t t = 0; t < tokens; t++, x += stride, out += D * item) {
    const char *cos = (const char *)rotary->cos + (position + t) * half * item;
    const char *sin = (const char *)rotary->sin + (position + t) * half * item;
    for (int64_t i = 0; i < half; i++) {
      float a = read_one(x, dtype, step * i), b = read_one(x, dtype, step * i + apart);
      float c = read_one(cos, dtype, i), s = read_one(sin, dtype, i);
      write_one(out, dtype, step * i, a * c - b * s);
      write_one(out, dtype, step * i + apart, b * c + a * s);
    }
    memcpy(out + 2 * half * item, x + 2 * half * item, (size_t)((D - 2 * half) * item));
  }
}
