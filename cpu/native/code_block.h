#ifndef ADAMAS_CODE_BLOCK_H
#define ADAMAS_CODE_BLOCK_H

#include "include/adamas.h"

/* The codes of keys and values of one head of one sequence, for T tiles, as one block of bytes: all
   arrays of adamas_keys and adamas_values, and the number of tokens that are coded. Zeros are a block
   without tokens. */
enum { CODE_BLOCK_PARTS = 12 };

struct code_block {
  int64_t T, D, bytes;
  int64_t offset[CODE_BLOCK_PARTS];
};

/* The block of T tiles. Only a tail needs codes of values, and a third bit of keys. */
struct code_block code_block_of(int64_t T, int64_t D, int tail);
/* The tiles of a block of so many bytes, or -1 if there is no such block. No bytes have no tile. */
int64_t code_block_tiles(int64_t bytes, int64_t D, int tail);

/* The arrays of B sequences of H_kv heads, whose blocks lie one after the other at data. Thresholds
   and totals are the caller's. values may be NULL without a tail. */
void code_block_place(const struct code_block *block, char *data, int64_t B, int64_t H_kv,
                      adamas_keys *keys, adamas_values *values);
/* Copy the block of a head to a larger one, which holds zeros. */
void code_block_grow(const struct code_block *from, const char *old, const struct code_block *to,
                     char *data, int tail);

/* The number of tokens that a head's block holds. */
int64_t code_block_tokens(const char *data);
void code_block_set_tokens(char *data, int64_t tokens);

#endif
