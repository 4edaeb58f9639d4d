/* Numbers of an array of float32 or float16, as float32. */
#ifndef ADAMAS_NUMBERS_H
#define ADAMAS_NUMBERS_H

#include <stdint.h>
#include <string.h>

#include "include/adamas.h"

static inline float of_bits(uint32_t bits) {
  float x;
  memcpy(&x, &bits, sizeof x);
  return x;
}

static inline float of_half(uint16_t x) {
  uint32_t sign = (uint32_t)(x & 0x8000) << 16, rest = x & 0x7fff;
  if (rest >= 0x7c00) return of_bits(sign | 0x7f800000 | (rest & 0x3ff) << 13);
  /* The bits as those of a float32, times 2^112, are the value, subnormal numbers included. */
  return of_bits(sign | rest << 13) * 0x1p112f;
}

/* The nearest float16; of two the even one. */
static inline uint16_t to_half(float x) {
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

static inline float read_number(const void *x, int dtype, int64_t i) {
  if (dtype == ADAMAS_FLOAT32) return ((const float *)x)[i];
  return of_half(((const uint16_t *)x)[i]);
}

static inline void write_number(void *x, int dtype, int64_t i, float value) {
  if (dtype == ADAMAS_FLOAT32)
    ((float *)x)[i] = value;
  else
    ((uint16_t *)x)[i] = to_half(value);
}

#endif
