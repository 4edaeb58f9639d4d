"""Appending one token to packed keys, for C and Cython callers.

    from adamas_core.cpu._pack cimport append_float32

Each function takes the key of one token of one KV head. It transforms the key, buckets its
coordinates and writes their bits into the head's two planes, in place. The bits always equal those
of ``adamas_core.reference.encode``.

key         head_dim consecutive values, not transformed: float, or the bit patterns of
            float16 or bfloat16 numbers.
head_dim    from 1 to 2048. Dt is head_dim rounded up to a power of two, P = ceil(Dt / 64).
thresholds  the head's 3 thresholds. A coordinate's code is the number of thresholds below it.
high, low   the starts of the head's high and low plane. Each is a row of tiles of
            (8 groups, P words, 8 tokens); token t's word p lies at ((t / 8) * P + p) * 8 + t % 8.
token       the token to write, from 0 on. The planes must hold 64 * P * (token / 64 + 1) words.

Returns 0. If head_dim is out of range, it returns -1 and writes nothing. Only the token's own
2 P words change, so threads may write different tokens and heads at the same time. Nothing is
allocated; the coordinates take 8 KiB of stack.
"""

from libc.stdint cimport uint16_t, uint64_t

cdef int append_float32(
    const float *key, Py_ssize_t head_dim, const float *thresholds,
    uint64_t *high, uint64_t *low, Py_ssize_t token,
) noexcept nogil

cdef int append_float16(
    const uint16_t *key, Py_ssize_t head_dim, const float *thresholds,
    uint64_t *high, uint64_t *low, Py_ssize_t token,
) noexcept nogil

cdef int append_bfloat16(
    const uint16_t *key, Py_ssize_t head_dim, const float *thresholds,
    uint64_t *high, uint64_t *low, Py_ssize_t token,
) noexcept nogil
