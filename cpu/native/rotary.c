/* Rotary positions: each pair of a row's coordinates turns by the angle of its position. */

#include "rotary.h"

#include <string.h>

#include "numbers.h"

void rotate_rows(const struct rotary *rotary, int dtype, const char *x, int64_t stride,
                 int64_t position, int64_t tokens, int64_t D, char *out) {
  int64_t half = rotary->half, step = rotary->interleaved ? 2 : 1, apart = step == 2 ? 1 : half;
  int64_t item = dtype == ADAMAS_FLOAT32 ? 4 : 2;
  for (int64_t t = 0; t < tokens; t++, x += stride, out += D * item) {
    const char *cos = (const char *)rotary->cos + (position + t) * half * item;
    const char *sin = (const char *)rotary->sin + (position + t) * half * item;
    for (int64_t i = 0; i < half; i++) {
      float a = read_number(x, dtype, step * i), b = read_number(x, dtype, step * i + apart);
      float c = read_number(cos, dtype, i), s = read_number(sin, dtype, i);
      write_number(out, dtype, step * i, a * c - b * s);
      write_number(out, dtype, step * i + apart, b * c + a * s);
    }
    memcpy(out + 2 * half * item, x + 2 * half * item, (size_t)((D - 2 * half) * item));
  }
}
