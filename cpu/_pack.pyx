# cython: language_level=3, boundscheck=False, wraparound=False, initializedcheck=False
# cython: cdivision=True
"""Appending few tokens to packed keys, with a call that costs little."""

from cpython.number cimport PyNumber_AsSsize_t
from libc.math cimport sqrt
from libc.stdint cimport int64_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

import numpy as np

cdef object _float32 = np.dtype(np.float32)
cdef object _float16 = np.dtype(np.float16)
cdef object _uint64 = np.dtype(np.uint64)
cdef object _uint16 = np.dtype(np.uint16)


cdef enum:
    MAX_HEAD_DIM = 2048


# ---- one key, in C ------------------------------------------------------------------------------
# The contracts are in _pack.pxd. Cython does not read that file here, because only setuptools'
# mapping makes this folder adamas_core.cpu. So the three functions are exported by "api", and their
# signatures must be equal to those of _pack.pxd. A caller that finds others raises TypeError.

cdef inline float from_bits(uint32_t bits) noexcept nogil:
    cdef float x
    memcpy(&x, &bits, sizeof(x))
    return x


cdef inline float widen_float16(uint16_t h) noexcept nogil:
    cdef uint32_t sign = <uint32_t>(h & 0x8000) << 16
    cdef uint32_t exponent = (h >> 10) & 0x1F
    cdef uint32_t fraction = h & 0x3FF
    cdef float x
    if exponent == 0:  # zero or subnormal, fraction * 2**-24: exact, and normal in float32
        x = <float>fraction * from_bits((127 - 24) << 23)
        return -x if sign else x
    if exponent == 0x1F:  # inf or NaN
        return from_bits(sign | 0x7F800000 | fraction << 13)
    return from_bits(sign | (exponent + 127 - 15) << 23 | fraction << 13)


cdef inline Py_ssize_t padded(Py_ssize_t head_dim) noexcept nogil:
    """Dt, head_dim rounded up to a power of two: reference/layout.py's padded, for C code."""
    cdef Py_ssize_t dt = 1
    while dt < head_dim:
        dt *= 2
    return dt


cdef inline void transform(float *x, Py_ssize_t dt) noexcept nogil:
    """Walsh-Hadamard transform in place, every step rounded to float32 in the contract's order."""
    cdef Py_ssize_t stride = 1, start, i
    cdef float a, b, factor
    while stride < dt:
        start = 0
        while start < dt:
            for i in range(start, start + stride):
                a = x[i]
                b = x[i + stride]
                x[i] = a + b
                x[i + stride] = a - b
            start += 2 * stride
        stride *= 2
    factor = <float>(1.0 / sqrt(<double>dt))
    for i in range(dt):
        x[i] *= factor


cdef inline void pack(
    const float *x, Py_ssize_t dt, const float *thresholds,
    uint64_t *high, uint64_t *low, Py_ssize_t token,
) noexcept nogil:
    """Bucket the transformed x and write its words to their places in the token's tile."""
    cdef float t0 = thresholds[0], t1 = thresholds[1], t2 = thresholds[2]
    cdef Py_ssize_t words = (dt + 63) // 64, bits = min(dt, 64)
    cdef Py_ssize_t word, i, place = token // 8 * words * 8 + token % 8
    cdef uint64_t code, high_word, low_word
    for word in range(words):
        high_word = low_word = 0
        for i in range(bits):
            # A NaN is above no threshold, so it counts 0.
            code = <uint64_t>(x[i] > t0) + <uint64_t>(x[i] > t1) + <uint64_t>(x[i] > t2)
            high_word |= (code >> 1) << i
            low_word |= (code & 1) << i
        high[place] = high_word
        low[place] = low_word
        x += 64
        place += 8


cdef void append_widened(
    float *x, Py_ssize_t head_dim, const float *thresholds,
    uint64_t *high, uint64_t *low, Py_ssize_t token,
) noexcept nogil:
    """Append the key in x, which has room for MAX_HEAD_DIM values and is overwritten."""
    cdef Py_ssize_t dt = padded(head_dim)
    memset(x + head_dim, 0, (dt - head_dim) * sizeof(float))
    transform(x, dt)
    pack(x, dt, thresholds, high, low, token)


cdef api int append_float32(
    const float *key, Py_ssize_t head_dim, const float *thresholds,
    uint64_t *high, uint64_t *low, Py_ssize_t token,
) noexcept nogil:
    cdef float x[MAX_HEAD_DIM]
    if not 1 <= head_dim <= MAX_HEAD_DIM:
        return -1
    memcpy(x, key, head_dim * sizeof(float))
    append_widened(x, head_dim, thresholds, high, low, token)
    return 0


cdef api int append_float16(
    const uint16_t *key, Py_ssize_t head_dim, const float *thresholds,
    uint64_t *high, uint64_t *low, Py_ssize_t token,
) noexcept nogil:
    cdef float x[MAX_HEAD_DIM]
    cdef Py_ssize_t i
    if not 1 <= head_dim <= MAX_HEAD_DIM:
        return -1
    for i in range(head_dim):
        x[i] = widen_float16(key[i])
    append_widened(x, head_dim, thresholds, high, low, token)
    return 0


cdef api int append_bfloat16(
    const uint16_t *key, Py_ssize_t head_dim, const float *thresholds,
    uint64_t *high, uint64_t *low, Py_ssize_t token,
) noexcept nogil:
    cdef float x[MAX_HEAD_DIM]
    cdef Py_ssize_t i
    if not 1 <= head_dim <= MAX_HEAD_DIM:
        return -1
    for i in range(head_dim):
        x[i] = from_bits(<uint32_t>key[i] << 16)
    append_widened(x, head_dim, thresholds, high, low, token)
    return 0


# ---- arrays, from Python ------------------------------------------------------------------------

cdef int check_slots(Py_ssize_t first, Py_ssize_t S, Py_ssize_t T) except -1:
    if first < 0 or first > T * 64 - S:
        raise IndexError(
            f"append: start {first} and {S} tokens; expected slots 0 to {T * 64 - 1} of the planes"
        )
    return 0


def append(k, thresholds, planes, start):
    """Write the keys k into key planes as the tokens start, start + 1, ... of them, in place.

    The bits are those of ``adamas_core.reference.encode(k, thresholds, planes, start)``. All work
    happens without the GIL, on the calling thread.

    Parameters
    ----------
    k : ndarray, (B, H_kv, S, D)
        Keys, S = 1 in decoding: float16, bfloat16 or float32, D at most 2048. Any strides, as long
        as the last axis is contiguous.
    thresholds : ndarray of float32, (3,) or (H_kv, 3)
    planes : ndarray of uint64, (2, B, H_kv, T, 8, P, 8)
        Any strides of the first three axes; the last four are contiguous.
    start : int or array of int, (B,)
        Where the first of the S tokens goes, for each sequence.

    Raises
    ------
    TypeError
        A dtype is not one of these, or not in the machine's byte order.
    ValueError
        The shapes do not fit each other, or an axis that must be contiguous is not.
    IndexError
        A token has no slot among the 64 T of the planes. Nothing was written.
    """
    cdef const float[:, :, :, :] single
    cdef const uint16_t[:, :, :, :] half
    cdef const float[:, :] t
    cdef uint64_t[:, :, :, :, :, :, :] p
    cdef const int64_t[:] starts
    cdef Py_ssize_t B, H, S, D, T, P, b, h, s, own, first = 0
    cdef bint is_single, is_float16, one_start, contiguous
    cdef float head_thresholds[3]
    cdef uint64_t *high
    cdef uint64_t *low

    dtype = k.dtype
    # The buffer protocol has no bfloat16, and Cython reads no float16 out of it: both pass as words.
    is_single = dtype == _float32
    is_float16 = not is_single and dtype == _float16
    if is_single:
        single = k
        B, H, S, D = single.shape[0], single.shape[1], single.shape[2], single.shape[3]
        contiguous = D == 1 or single.strides[3] == sizeof(float)
    elif is_float16 or (dtype.type.__name__ == "bfloat16" and dtype.isnative):
        half = k.view(_uint16)
        B, H, S, D = half.shape[0], half.shape[1], half.shape[2], half.shape[3]
        contiguous = D == 1 or half.strides[3] == sizeof(uint16_t)
    else:
        raise TypeError(f"append: k has dtype {dtype}; expected float16, bfloat16 or float32")
    if thresholds.dtype != _float32:
        raise TypeError(f"append: thresholds have dtype {thresholds.dtype}; expected float32")
    if planes.dtype != _uint64:
        raise TypeError(f"append: planes have dtype {planes.dtype}; expected uint64")
    t = thresholds if thresholds.ndim == 2 else thresholds.reshape(1, -1)
    p = planes
    T, P = p.shape[3], p.shape[5]

    if not 1 <= D <= MAX_HEAD_DIM:
        raise ValueError(f"append: k has head_dim {D}; expected 1 to {MAX_HEAD_DIM}")
    if (
        p.shape[0] != 2 or p.shape[1] != B or p.shape[2] != H or p.shape[4] != 8
        or p.shape[6] != 8 or P != (padded(D) + 63) // 64
    ):
        raise ValueError(
            f"append: planes of shape {planes.shape}; expected (2, {B}, {H}, T, 8, "
            f"{(padded(D) + 63) // 64}, 8) for k of shape {k.shape}"
        )
    if t.shape[1] != 3 or t.shape[0] not in (1, H):
        raise ValueError(
            f"append: thresholds of shape {thresholds.shape}; expected (3,) or ({H}, 3)"
        )
    if not contiguous:
        raise ValueError(f"append: k has strides {k.strides}; expected a contiguous last axis")
    if (  # an axis of length 1 may have any stride
        p.strides[6] != 8 or (P > 1 and p.strides[5] != 64) or p.strides[4] != 64 * P
        or (T > 1 and p.strides[3] != 512 * P)
    ):
        raise ValueError(
            f"append: planes have strides {planes.strides}; expected four contiguous last axes"
        )

    one_start = isinstance(start, int)
    if one_start:
        first = PyNumber_AsSsize_t(start, IndexError)
        check_slots(first, S, T)
    else:
        starts = np.broadcast_to(np.asarray(start), (B,)).astype(np.int64, casting="same_kind")
        for b in range(B):
            check_slots(starts[b], S, T)

    own = t.shape[0] > 1  # 1 where every head has thresholds of its own, else 0
    with nogil:
        for b in range(B):
            if not one_start:
                first = starts[b]
            for h in range(H):
                head_thresholds[0] = t[own * h, 0]
                head_thresholds[1] = t[own * h, 1]
                head_thresholds[2] = t[own * h, 2]
                high = &p[0, b, h, 0, 0, 0, 0]
                low = &p[1, b, h, 0, 0, 0, 0]
                for s in range(S):
                    if is_single:
                        append_float32(
                            &single[b, h, s, 0], D, head_thresholds, high, low, first + s
                        )
                    elif is_float16:
                        append_float16(
                            &half[b, h, s, 0], D, head_thresholds, high, low, first + s
                        )
                    else:
                        append_bfloat16(
                            &half[b, h, s, 0], D, head_thresholds, high, low, first + s
                        )
