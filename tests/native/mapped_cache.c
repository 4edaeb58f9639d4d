/* Decode over the file of a KVCache that is mapped into memory: nothing of it is copied.

       mapped_cache FILE QUERIES H BUDGET

   QUERIES holds the queries (B, H, 1, D) in float32. The outputs go to stdout as float32. The file
   has one layer of centered codes and float32 keys; its checksum is not looked at. */

#include <adamas.h>

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

static void fail(const char *what) {
  fprintf(stderr, "mapped_cache: %s\n", what);
  exit(1);
}

struct array {
  char *data;
  int64_t shape[7];
};

/* An array of the header's table, by its name in quotes. */
static struct array find(const char *header, char *arrays, const char *name) {
  struct array found = {0};
  const char *entry = strstr(header, name);
  const char *shape = entry ? strstr(entry, "\"shape\": [") : NULL;
  const char *offset = entry ? strstr(entry, "\"offset\": ") : NULL;
  if (!shape || !offset) fail(name);
  const char *at = shape + strlen("\"shape\": [");
  for (int i = 0; i < 7 && *at && *at != ']'; i++) {
    char *end;
    found.shape[i] = strtoll(at, &end, 10);
    at = *end == ',' ? end + 1 : end;
  }
  found.data = arrays + strtoll(offset + strlen("\"offset\": "), NULL, 10);
  return found;
}

static char *map(const char *path, size_t *size) {
  struct stat about;
  int file = open(path, O_RDONLY);
  if (file < 0 || fstat(file, &about)) fail(path);
  *size = (size_t)about.st_size;
  char *memory = mmap(NULL, *size, PROT_READ, MAP_PRIVATE, file, 0);
  if (memory == MAP_FAILED) fail(path);
  close(file);
  return memory;
}

int main(int count, char **arguments) {
  size_t size, query_size;
  if (count != 5) fail("expected FILE QUERIES H BUDGET");
  char *file = map(arguments[1], &size), *q = map(arguments[2], &query_size);
  if (size < 20 || memcmp(file, "ADAMASKV", 8)) fail("not the file of a cache");
  uint64_t header_size;
  memcpy(&header_size, file + 12, 8);
  char *header = malloc(header_size + 1);
  if (!header) fail("no memory");
  memcpy(header, file + 20, header_size);
  header[header_size] = 0;
  char *arrays = file + 20 + header_size;

  struct array k = find(header, arrays, "\"0.k\""), v = find(header, arrays, "\"0.v\"");
  struct array planes = find(header, arrays, "\"0.planes\"");
  struct array lengths = find(header, arrays, "\"0.length\"");
  int64_t B = k.shape[0], H_kv = k.shape[1], S = k.shape[2], D = k.shape[3];
  adamas_keys keys = {
      .size = sizeof keys, .B = B, .H_kv = H_kv, .T = planes.shape[3], .D = D,
      .planes = {planes.data, 0, 0},
      .thresholds = (const float *)find(header, arrays, "\"0.codes_thresholds\"").data,
      .means = {find(header, arrays, "\"0.means\"").data, 0, 0},
      .scales = {find(header, arrays, "\"0.scales\"").data, 0, 0},
      .open_tile = {find(header, arrays, "\"0.open_tile\"").data, 0, 0}};
  int64_t H = strtoll(arguments[3], NULL, 10);
  adamas_selection selection = {.size = sizeof selection, .query_bits = 4,
                                .budget = strtoll(arguments[4], NULL, 10)};
  float *out = malloc(sizeof *out * (size_t)(B * H * D));
  float *lse = malloc(sizeof *lse * (size_t)(B * H));
  if (!out || !lse || query_size < sizeof *out * (size_t)(B * H * D)) fail("the queries");
  adamas_step step = {.size = sizeof step, .H = H, .L = 1, .keys = &keys, .selection = &selection,
                      .lengths = (const int64_t *)lengths.data, .q = {q, 0, 0, 0},
                      .k = {k.data, 0, 0, 0}, .v = {v.data, 0, 0, 0}, .S = S, .out = out,
                      .lse = lse};
  int status = adamas_step_run(&step);
  if (status) fail(adamas_error(status));
  fwrite(out, sizeof *out, (size_t)(B * H * D), stdout);
  free(out);
  free(lse);
  free(header);
  munmap(file, size);
  munmap(q, query_size);
  return 0;
}
