/* A layout of codes in which each head has one block, so that an array (B, H_kv, bytes) holds all. */

#include "code_block.h"

#include <string.h>

enum { TILE = 64, HEADER = 64 };

/* From the widest item to the narrowest, so that no part needs padding where D is a multiple of 8. */
enum {
  TOKENS, HIGH_PLANE, LOW_PLANE, THIRD, VALUES, OPEN_TILE, BASES, SUMS, MEANS, SCALES,
  THIRD_SCALES, VALUE_SCALES
};

struct part {
  int64_t fixed, per_tile; /* bytes */
};

static void parts_of(int64_t D, int tail, struct part *parts) {
  int64_t Dt = 1;
  while (Dt < D) Dt *= 2;
  int64_t plane = (Dt + 63) / 64 * 8 * TILE;
  const struct part all[CODE_BLOCK_PARTS] = {
      [TOKENS] = {HEADER, 0},
      [HIGH_PLANE] = {0, plane},
      [LOW_PLANE] = {0, plane},
      [THIRD] = {0, tail ? plane : 0},
      [VALUES] = {0, tail ? 2 * plane : 0},
      [OPEN_TILE] = {TILE * Dt * 4, 0},
      [BASES] = {tail ? 2 * D * 4 : 0, 0},
      [SUMS] = {tail ? 2 * D * 4 : 0, 0},
      [MEANS] = {0, Dt * 2},
      [SCALES] = {0, TILE},
      [THIRD_SCALES] = {0, tail ? TILE : 0},
      [VALUE_SCALES] = {0, tail ? TILE : 0}};
  memcpy(parts, all, sizeof all);
}

struct code_block code_block_of(int64_t T, int64_t D, int tail) {
  struct part parts[CODE_BLOCK_PARTS];
  struct code_block block = {.T = T, .D = D};
  parts_of(D, tail, parts);
  for (int i = 0; i < CODE_BLOCK_PARTS; i++) {
    block.offset[i] = block.bytes;
    block.bytes += parts[i].fixed + T * parts[i].per_tile;
  }
  return block;
}

int64_t code_block_tiles(int64_t bytes, int64_t D, int tail) {
  struct code_block empty = code_block_of(0, D, tail), one = code_block_of(1, D, tail);
  int64_t tile = one.bytes - empty.bytes, rest = bytes - empty.bytes;
  if (bytes == 0) return 0;
  return rest > 0 && rest % tile == 0 ? rest / tile : -1;
}

static adamas_heads part_at(const struct code_block *block, char *data, int64_t H_kv, int part) {
  adamas_heads heads = {data + block->offset[part], H_kv * block->bytes, block->bytes};
  return heads;
}

void code_block_place(const struct code_block *block, char *data, int64_t B, int64_t H_kv,
                      adamas_keys *keys, adamas_values *values) {
  keys->size = sizeof *keys;
  keys->B = B;
  keys->H_kv = H_kv;
  keys->T = block->T;
  keys->D = block->D;
  keys->planes = part_at(block, data, H_kv, HIGH_PLANE);
  keys->to_low = block->offset[LOW_PLANE] - block->offset[HIGH_PLANE];
  keys->means = part_at(block, data, H_kv, MEANS);
  keys->scales = part_at(block, data, H_kv, SCALES);
  keys->open_tile = part_at(block, data, H_kv, OPEN_TILE);
  if (!values) return;
  keys->third = part_at(block, data, H_kv, THIRD);
  keys->third_scales = part_at(block, data, H_kv, THIRD_SCALES);
  values->size = sizeof *values;
  values->B = B;
  values->H_kv = H_kv;
  values->T = block->T;
  values->D = block->D;
  values->codes = part_at(block, data, H_kv, VALUES);
  values->scales = part_at(block, data, H_kv, VALUE_SCALES);
  values->bases = part_at(block, data, H_kv, BASES);
  values->sums = part_at(block, data, H_kv, SUMS);
}

void code_block_grow(const struct code_block *from, const char *old, const struct code_block *to,
                     char *data, int tail) {
  struct part parts[CODE_BLOCK_PARTS];
  parts_of(from->D, tail, parts);
  for (int i = 0; i < CODE_BLOCK_PARTS; i++)
    memcpy(data + to->offset[i], old + from->offset[i],
           (size_t)(parts[i].fixed + from->T * parts[i].per_tile));
}

int64_t code_block_tokens(const char *data) {
  int64_t tokens;
  memcpy(&tokens, data, sizeof tokens);
  return tokens;
}

void code_block_set_tokens(char *data, int64_t tokens) { memcpy(data, &tokens, sizeof tokens); }
