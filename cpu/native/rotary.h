#ifndef ADAMAS_ROTARY_H
#define ADAMAS_ROTARY_H

#include "include/adamas.h"

/* The angles of all positions: cos and sin (positions, half) of a dtype. The first 2 half coordinates
   of a row turn. Pair i is the coordinates i and half + i, or 2 i and 2 i + 1 if interleaved. */
struct rotary {
  const void *cos, *sin;
  int64_t half;
  int interleaved;
};

/* Rotate the rows of one head, x (tokens, D) with a stride in bytes, from a position on. The result
   has no gaps. dtype is float32 or float16. */
void rotate_rows(const struct rotary *rotary, int dtype, const char *x, int64_t stride,
                 int64_t position, int64_t tokens, int64_t D, char *out);

#endif
