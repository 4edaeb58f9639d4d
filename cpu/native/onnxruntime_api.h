/* The part of ONNX Runtime's C interface that onnxruntime.c uses, declared here because no wheel has
   the header. It is a table of functions that grows at its end only, so positions never change. */
#ifndef ADAMAS_ONNXRUNTIME_API_H
#define ADAMAS_ONNXRUNTIME_API_H

#include <stddef.h>
#include <stdint.h>

/* The version of the table that is asked for. It is the first whose custom operators can fail. */
enum { ORT_VERSION = 16 };
enum { ORT_FAIL = 1, ORT_INVALID_ARGUMENT = 2 };
enum { ORT_FLOAT32 = 1, ORT_UINT8 = 2, ORT_INT32 = 6, ORT_FLOAT16 = 10 };
enum { ORT_REQUIRED = 0, ORT_OPTIONAL = 1 };

/* Opaque. */
typedef struct ort_status ort_status;
typedef struct ort_value ort_value;
typedef struct ort_shape ort_shape; /* type and shape of a tensor */
typedef struct ort_info ort_info;   /* of a node */
typedef struct ort_context ort_context;
typedef struct ort_domain ort_domain;
typedef struct ort_options ort_options; /* of a session */

struct ort_op;

/* Each status is NULL, or an error that the receiver releases. */
typedef struct ort_api {
  ort_status *(*create_status)(int code, const char *message); /* 0 */
  void *from_1[25];
  ort_status *(*create_domain)(const char *name, ort_domain **domain);                  /* 26 */
  ort_status *(*add_op)(ort_domain *domain, const struct ort_op *op);                   /* 27 */
  ort_status *(*add_domain)(ort_options *options, ort_domain *domain);                  /* 28 */
  void *from_29[22];
  ort_status *(*tensor_data)(ort_value *value, void **data); /* 51 */
  void *from_52[8];
  ort_status *(*element_type)(const ort_shape *shape, int *type);                       /* 60 */
  ort_status *(*dimensions_count)(const ort_shape *shape, size_t *count);               /* 61 */
  ort_status *(*dimensions)(const ort_shape *shape, int64_t *values, size_t count);     /* 62 */
  void *from_63[2];
  ort_status *(*type_and_shape)(const ort_value *value, ort_shape **shape); /* 65 */
  void *from_66[19];
  ort_status *(*attribute_float)(const ort_info *info, const char *name, float *out);   /* 85 */
  ort_status *(*attribute_int64)(const ort_info *info, const char *name, int64_t *out); /* 86 */
  void *from_87;
  ort_status *(*input_count)(const ort_context *context, size_t *count); /* 88 */
  void *from_89;
  ort_status *(*input)(const ort_context *context, size_t index, const ort_value **value); /* 90 */
  ort_status *(*output)(ort_context *context, size_t index, const int64_t *shape, size_t rank,
                        ort_value **value); /* 91 */
  void *from_92;
  void (*release_status)(ort_status *status); /* 93 */
  void *from_94[5];
  void (*release_shape)(ort_shape *shape); /* 99 */
} ort_api;

_Static_assert(offsetof(ort_api, create_domain) == 26 * sizeof(void *), "position");
_Static_assert(offsetof(ort_api, tensor_data) == 51 * sizeof(void *), "position");
_Static_assert(offsetof(ort_api, element_type) == 60 * sizeof(void *), "position");
_Static_assert(offsetof(ort_api, type_and_shape) == 65 * sizeof(void *), "position");
_Static_assert(offsetof(ort_api, attribute_float) == 85 * sizeof(void *), "position");
_Static_assert(offsetof(ort_api, input) == 90 * sizeof(void *), "position");
_Static_assert(offsetof(ort_api, release_status) == 93 * sizeof(void *), "position");
_Static_assert(offsetof(ort_api, release_shape) == 99 * sizeof(void *), "position");

typedef struct ort_base {
  const ort_api *(*api)(uint32_t version); /* NULL if the library is older */
  const char *(*version)(void);
} ort_base;

/* A custom operator, as version 16 reads it. A function that is NULL is not called. */
typedef struct ort_op {
  uint32_t version;
  void *create; /* replaced by create_kernel */
  const char *(*name)(const struct ort_op *op);
  const char *(*provider)(const struct ort_op *op);
  int (*input_type)(const struct ort_op *op, size_t index);
  size_t (*inputs)(const struct ort_op *op);
  int (*output_type)(const struct ort_op *op, size_t index);
  size_t (*outputs)(const struct ort_op *op);
  void *compute; /* replaced by compute_kernel */
  void (*destroy_kernel)(void *kernel);
  int (*input_kind)(const struct ort_op *op, size_t index); /* required or optional */
  int (*output_kind)(const struct ort_op *op, size_t index);
  int (*input_memory)(const struct ort_op *op, size_t index); /* 0: of the provider */
  int (*variadic[4])(const struct ort_op *op);
  ort_status *(*create_kernel)(const struct ort_op *op, const ort_api *api, const ort_info *info,
                               void **kernel);
  ort_status *(*compute_kernel)(void *kernel, ort_context *context);
} ort_op;

#endif
