"""Softmax attention over chosen tokens."""

from __future__ import annotations

import math

import numpy as np
from numba import prange
from numpy.typing import NDArray

from ._array import (
    BFLOAT16,
    FLOAT16,
    FLOAT32,
    LANES,
    LINE,
    address,
    dtype_code,
    item_bytes,
    load_first_lanes,
    load_lanes,
    narrow_row,
    widen_row,
)
from ._jit import inlined, invoke, kernel, opaque
from ._simd import (
    allow_threads,
    exp,
    larger_number,
    largest_of,
    load_float32,
    load_int32,
    load_int64,
    load_scalar_float32,
    multiply_add,
    prefetch,
    store_float32,
    store_int64,
    store_scalar_float32,
    sum_of,
    threads_allowed,
    to_all,
)
from ._step import step_at, step_record
from .dense import attend_dense

BATCH = 4  # rows read together
MANY = 384  # rows that fit the caches until they are used; of more, only the next are asked for
AHEAD = 8  # so many rows before they are used
PARTIAL = 128  # rows summed before their sum joins the total: float32 sums stay short
PRODUCTS_A_THREAD = 250_000  # of query and key, 0.1 ms: what waking another thread costs


def attend(
    q: NDArray,
    k: NDArray,
    v: NDArray,
    indices: NDArray[np.int32] | None,
    scale: float | None = None,
    return_lse: bool = False,
) -> NDArray | tuple[NDArray, NDArray[np.float32]]:
    """Attention of q (B, H, L, D) over the rows `indices` (B, H, L, K) of k, v (B, H_kv, S, D)."""
    B, H, L, D = q.shape
    out = np.empty(q.shape, q.dtype)
    lse = np.empty((B, H, L), np.float32)
    if indices is None:
        attend_dense(q, k, v, D**-0.5 if scale is None else float(scale), out, lse)
    elif out.size:
        indices = np.ascontiguousarray(indices, np.int32)
        no_codes = (0, 0, 0, 0, *k.shape[1:3], *(0,) * 10)
        no_selection = (0, indices.shape[-1], 0, 0, 0, 0, 0, address(indices))
        fields = (
            *(0, 0, 0, 0, attend_rows.address),
            *(address(q), dtype_code(q), *q.strides[:3], B, H, L, D, 0),
            *(*no_codes, *no_selection, *attention(k, v, scale, out, lse)),
        )
        bad = _attend(step_record(fields))
        if bad >= 0:
            raise IndexError(f"index {bad} is out of range: k and v hold {k.shape[2]} tokens")
    return (out, lse) if return_lse else out


def attention(
    k: NDArray, v: NDArray, scale: float | None, out: NDArray, lse: NDArray
) -> tuple[float, ...]:
    """The last fields of a step's record: what to attend to, and where to."""
    return (
        *(address(k), *k.strides[:3], address(v), *v.strides[:3], dtype_code(k)),
        *(address(out), address(lse), k.shape[3] ** -0.5 if scale is None else float(scale)),
    )


@kernel
def _attend(steps):
    """Returns an index that is out of range, or -1."""
    step = steps[0]
    rows = step.B * step.H * step.L
    allowed = threads_allowed()
    work = rows * step.D * step.budget
    threads = allowed if work >= 2 * PRODUCTS_A_THREAD else 1
    bad = np.empty(threads, np.int64)
    at, function = steps.ctypes.data, step.attend_rows
    scratch_bytes = attend_scratch(step.D, step.budget)
    allow_threads(threads)
    for i in prange(threads):
        scratch = np.empty(scratch_bytes, np.uint8)
        start, end = rows * i // threads, rows * (i + 1) // threads
        bad[i] = invoke(function, (at, start, end, scratch.ctypes.data))
        scratch[0] = 0  # it is freed after its last use by name
    allow_threads(allowed)
    return bad.max()


@inlined
def attend_scratch(D, K):
    """Bytes that attend_rows needs: two rows' tokens, the scaled query, two sums, the logits."""
    floats = 3 * (D + LANES) + K + LANES
    return 4 * floats + 16 * K + LINE


@opaque
def attend_rows(step, start, end, scratch):
    """Attend for rows start .. end of (B, H, L); an index that is out of range, or -1.

    A constant dtype makes each of these calls a function of its own.
    """
    given = step_at(step)
    if given.kv_dtype == FLOAT32:
        return _attend_rows(given, FLOAT32, start, end, scratch)
    if given.kv_dtype == FLOAT16:
        return _attend_rows(given, FLOAT16, start, end, scratch)
    return _attend_rows(given, BFLOAT16, start, end, scratch)


@inlined
def _attend_rows(step, dtype, start, end, scratch):
    """The same for one dtype of keys and values.

    Memory is kept busy: the values of a row are asked for while its logits are summed, and the
    keys of the next row while its values are. Where these are too many for the caches, both are
    asked for shortly before they are used.
    """
    q, H, L, D = step.q, step.H, step.L, step.D
    k, k_b, k_h, k_s = step.k, step.k_b, step.k_h, step.k_s
    v_s, S, indices, K = step.v_s, step.S, step.indices, step.budget
    G = H // step.H_kv
    padded = (D + LANES - 1) // LANES * LANES
    tokens = (scratch + 7) // 8 * 8  # of two rows, in turn
    query = tokens + 16 * K
    sums = query + 4 * padded
    p = sums + 8 * padded
    n, bad = _choose(indices + 4 * K * start, K, S, tokens + 8 * K * (start % 2))
    b, h, l = _split(start, H, L)
    keys = k + b * k_b + h // G * k_h
    for i in range(0, min(n, MANY), BATCH):
        _ask_for(keys, k_s, item_bytes(dtype) * D, tokens + 8 * K * (start % 2), i, n)
    for row in range(start, end):
        if bad >= 0:
            return bad
        source = q + b * step.q_b + h * step.q_h + l * step.q_l
        values = step.v + b * step.v_b + h // G * step.v_h
        chosen = tokens + 8 * K * (row % 2)
        _scaled_query(source, step.q_dtype, D, np.float32(step.scale), query)
        _logits(query, D, keys, k_s, values, v_s, dtype, chosen, n, p)
        largest, mass = _softmax(p, n)

        following = tokens + 8 * K * ((row + 1) % 2)
        following_n = 0
        if row + 1 < end:
            following_n, bad = _choose(indices + 4 * K * (row + 1), K, S, following)
            b, h, l = _split(row + 1, H, L)
            keys = k + b * k_b + h // G * k_h
        _sum_values(
            D, padded, values, v_s, dtype, chosen, n, p, sums, keys, k_s, following, following_n
        )
        if n > 0:
            for d in range(0, D, LANES):
                store_float32(sums + 4 * d, load_float32(sums + 4 * d) / to_all(mass))
            store_scalar_float32(step.lse + 4 * row, largest + np.float32(math.log(mass)))
        else:
            store_scalar_float32(step.lse + 4 * row, np.float32(-np.inf))
        narrow_row(sums, D, step.out + item_bytes(step.q_dtype) * D * row, step.q_dtype)
        n = following_n
    return bad


@inlined
def _split(row, H, L):
    """The batch, head and query of a row."""
    head, l = divmod(row, L)
    b, h = divmod(head, H)
    return b, h, l


@inlined
def _choose(indices, K, S, tokens):
    """Write the indices that are not negative; how many they are, and one that is >= S or -1."""
    n = 0
    for i in range(K):
        token = load_int32(indices + 4 * i)
        if token >= S:
            return n, np.int64(token)
        if token >= 0:
            store_int64(tokens + 8 * n, np.int64(token))
            n += 1
    return n, np.int64(-1)


@inlined
def _token(tokens, i):
    return load_int64(tokens + 8 * i)


@inlined
def _scaled_query(q, dtype, D, scale, query):
    widen_row(q, dtype, D, query)
    for d in range(0, D, LANES):
        store_float32(query + 4 * d, load_float32(query + 4 * d) * to_all(scale))


@inlined
def _ask_for(base, stride, octets, tokens, first, n):
    """Ask for a batch of rows."""
    for i in range(first, min(first + BATCH, n)):
        row = base + stride * _token(tokens, i)
        for offset in range(0, octets, LINE):
            prefetch(row + offset)


@inlined
def _logits(query, D, k, k_s, v, v_s, dtype, tokens, n, logits):
    """q.k of the chosen rows, q being scaled. Rows are asked for meanwhile."""
    size = item_bytes(dtype)
    whole = D - D % LANES
    batches = n - n % BATCH
    for i in range(0, batches, BATCH):
        if n <= MANY:
            _ask_for(v, v_s, size * D, tokens, i, n)
        else:
            _ask_for(k, k_s, size * D, tokens, i + AHEAD, n)
        a = k + k_s * _token(tokens, i)
        b = k + k_s * _token(tokens, i + 1)
        c = k + k_s * _token(tokens, i + 2)
        d = k + k_s * _token(tokens, i + 3)
        sum_a = sum_b = sum_c = sum_d = to_all(np.float32(0))
        for j in range(0, whole, LANES):
            x = load_float32(query + 4 * j)
            sum_a = multiply_add(x, load_lanes(a + size * j, dtype), sum_a)
            sum_b = multiply_add(x, load_lanes(b + size * j, dtype), sum_b)
            sum_c = multiply_add(x, load_lanes(c + size * j, dtype), sum_c)
            sum_d = multiply_add(x, load_lanes(d + size * j, dtype), sum_d)
        if whole < D:
            x = load_float32(query + 4 * whole)
            at = size * whole
            left = D - whole
            sum_a = multiply_add(x, load_first_lanes(a + at, dtype, left), sum_a)
            sum_b = multiply_add(x, load_first_lanes(b + at, dtype, left), sum_b)
            sum_c = multiply_add(x, load_first_lanes(c + at, dtype, left), sum_c)
            sum_d = multiply_add(x, load_first_lanes(d + at, dtype, left), sum_d)
        store_scalar_float32(logits + 4 * i, sum_of(sum_a))
        store_scalar_float32(logits + 4 * i + 4, sum_of(sum_b))
        store_scalar_float32(logits + 4 * i + 8, sum_of(sum_c))
        store_scalar_float32(logits + 4 * i + 12, sum_of(sum_d))
    for i in range(batches, n):
        a = k + k_s * _token(tokens, i)
        sum_a = to_all(np.float32(0))
        for j in range(0, D, LANES):
            x = load_float32(query + 4 * j)
            sum_a = multiply_add(x, load_first_lanes(a + size * j, dtype, D - j), sum_a)
        store_scalar_float32(logits + 4 * i, sum_of(sum_a))


@inlined
def _softmax(p, n):
    """exp(logit - largest) in place of n logits; the largest, and the sum."""
    for i in range(n, (n + LANES - 1) // LANES * LANES):
        store_scalar_float32(p + 4 * i, np.float32(-np.inf))
    maximum = to_all(np.float32(-np.inf))
    for i in range(0, n, LANES):
        maximum = larger_number(maximum, load_float32(p + 4 * i))
    largest = largest_of(maximum)
    mass = to_all(np.float32(0))
    for i in range(0, n, LANES):
        share = exp(load_float32(p + 4 * i) - to_all(largest))
        store_float32(p + 4 * i, share)
        mass += share
    return largest, sum_of(mass)


@inlined
def _sum_values(D, padded, v, v_s, dtype, tokens, n, p, sums, keys, k_s, following, following_n):
    """sums (D,) = the sum of p_i v_i over the chosen rows; asks for the next rows of memory.

    Behind sums lies room for a partial sum of as many floats.
    """
    zero = to_all(np.float32(0))
    partial = sums + 4 * padded
    for d in range(0, D, LANES):
        store_float32(sums + 4 * d, zero)
    for start in range(0, max(n, following_n), PARTIAL):
        for d in range(0, D, LANES):
            store_float32(partial + 4 * d, zero)
        for i in range(start, min(start + PARTIAL, max(n, following_n)), BATCH):
            if i < MANY:
                _ask_for(keys, k_s, item_bytes(dtype) * D, following, i, following_n)
            if n > MANY:
                _ask_for(v, v_s, item_bytes(dtype) * D, tokens, i + AHEAD, n)
            if i + BATCH <= n:
                _add_values(D, v, v_s, dtype, tokens, i, p, partial)
            else:
                for j in range(i, n):
                    _add_value(D, v + v_s * _token(tokens, j), dtype, p + 4 * j, partial)
        for d in range(0, D, LANES):
            sum_ = load_float32(sums + 4 * d) + load_float32(partial + 4 * d)
            store_float32(sums + 4 * d, sum_)


@inlined
def _add_values(D, v, v_s, dtype, tokens, i, p, partial):
    """partial (D,) += p_j v_j of a batch of rows, the first of which is the i-th chosen."""
    size = item_bytes(dtype)
    whole = D - D % LANES
    a = v + v_s * _token(tokens, i)
    b = v + v_s * _token(tokens, i + 1)
    c = v + v_s * _token(tokens, i + 2)
    d = v + v_s * _token(tokens, i + 3)
    p_a = to_all(load_scalar_float32(p + 4 * i))
    p_b = to_all(load_scalar_float32(p + 4 * i + 4))
    p_c = to_all(load_scalar_float32(p + 4 * i + 8))
    p_d = to_all(load_scalar_float32(p + 4 * i + 12))
    for j in range(0, whole, LANES):
        y = load_float32(partial + 4 * j)
        y = multiply_add(p_a, load_lanes(a + size * j, dtype), y)
        y = multiply_add(p_b, load_lanes(b + size * j, dtype), y)
        y = multiply_add(p_c, load_lanes(c + size * j, dtype), y)
        y = multiply_add(p_d, load_lanes(d + size * j, dtype), y)
        store_float32(partial + 4 * j, y)
    if whole < D:
        y = load_float32(partial + 4 * whole)
        at = size * whole
        left = D - whole
        y = multiply_add(p_a, load_first_lanes(a + at, dtype, left), y)
        y = multiply_add(p_b, load_first_lanes(b + at, dtype, left), y)
        y = multiply_add(p_c, load_first_lanes(c + at, dtype, left), y)
        y = multiply_add(p_d, load_first_lanes(d + at, dtype, left), y)
        store_float32(partial + 4 * whole, y)


@inlined
def _add_value(D, v, dtype, p, partial):
    """The same for one row."""
    size = item_bytes(dtype)
    share = to_all(load_scalar_float32(p))
    for d in range(0, D, LANES):
        y = load_first_lanes(v + size * d, dtype, D - d)
        store_float32(partial + 4 * d, multiply_add(share, y, load_float32(partial + 4 * d)))
