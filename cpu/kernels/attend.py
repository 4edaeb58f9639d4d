"""Softmax attention over chosen tokens."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from .._array import (
    BFLOAT16,
    FLOAT16,
    FLOAT32,
    LINE,
)
from .._records import Step
from ._cap import cap_all
from ._exp import exp
from ._float_rows import (
    LANES,
    item_bytes,
    load_first_lanes,
    load_lanes,
    narrow_row,
    whole_lanes,
    widen_row,
)
from ._jit import inlined, invoke, opaque
from ._memory import loop_at, step_at
from ._simd import (
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
    to_all,
)
from ._threads import raise_to

BATCH = 4  # rows read together
MANY = 384  # rows that stay in the caches until they are used; of more, only the next are asked for
AHEAD = 8  # how many rows before their use they are asked for
PARTIAL = 128  # rows summed before their sum is added to the total: float32 sums stay short
BAD = Step.offset("bad")
PRODUCTS_PER_THREAD = 250_000  # of query and key: 0.1 ms, the time that waking another thread takes


@opaque
def plan_attend(at):
    loop = loop_at(at)
    step = step_at(loop.record)
    rows = step.B * step.H * step.L
    if rows * step.D * step.budget < 2 * PRODUCTS_PER_THREAD:
        loop.threads = 1
    step.threads = loop.threads
    step.bad = -1
    loop.items = step.threads
    loop.scratch = attend_scratch(step.D, step.Dv, step.budget)
    return 0


@opaque
def attend_share(at, i, scratch):
    """The share of rows of one thread. step.bad becomes an index that is out of range, if any."""
    step = step_at(at)
    rows = step.B * step.H * step.L
    start, end = rows * i // step.threads, rows * (i + 1) // step.threads
    raise_to(at + BAD, invoke(step.attend_rows, (at, start, end, scratch)))
    return 0


@inlined
def attend_scratch(D, Dv, K):
    """Bytes that attend_rows needs: two rows' tokens, the scaled query, two sums, the logits."""
    floats = D + 2 * Dv + 3 * LANES + K + LANES
    return 4 * floats + 16 * K + LINE


@opaque
def attend_rows(at, start, end, scratch):
    """Attend for rows start .. end of (B, H, L). Returns an index that is out of range, or -1.

    A constant dtype makes each of these calls a function of its own.
    """
    step = step_at(at)
    if step.kv_dtype == FLOAT32:
        return _attend_rows(step, FLOAT32, start, end, scratch)
    if step.kv_dtype == FLOAT16:
        return _attend_rows(step, FLOAT16, start, end, scratch)
    return _attend_rows(step, BFLOAT16, start, end, scratch)


class Chosen(NamedTuple):
    """The chosen rows of the keys or values of one KV head."""

    base: int  # address of the head's first row
    stride: int
    tokens: int  # address of the tokens, int64
    n: int
    octets: int  # bytes per row


@inlined
def _attend_rows(step, dtype, start, end, scratch):
    """attend_rows for one dtype of keys and values.

    Memory is kept busy: the values of a row are asked for while its logits are summed, and the
    keys of the next row while its values are. If these are too many for the caches, both are asked
    for shortly before they are used.
    """
    H, L, D, Dv, K = step.H, step.L, step.D, step.Dv, step.budget
    G, size = H // step.H_kv, item_bytes(dtype)
    tokens = (scratch + 7) // 8 * 8  # of two rows, in turn
    query = tokens + 16 * K
    sums = query + 4 * whole_lanes(D)
    p = sums + 8 * whole_lanes(Dv)
    n, bad = _valid_indices(step, start, tokens + 8 * K * (start % 2))
    b, h, l = _split(start, H, L)
    base = step.k + b * step.k_b + h // G * step.k_h
    keys = Chosen(base, step.k_s, tokens + 8 * K * (start % 2), n, size * D)
    for i in range(0, min(n, MANY), BATCH):
        _ask_for(keys, i)
    for row in range(start, end):
        if bad >= 0:
            return bad
        source = step.q + b * step.q_b + h * step.q_h + l * step.q_l
        base = step.v + b * step.v_b + h // G * step.v_h
        values = Chosen(base, step.v_s, keys.tokens, keys.n, size * Dv)
        sink = sink_of(step, h)
        _scaled_query(source, step.q_dtype, D, np.float32(step.scale), query)
        _logits(query, D, dtype, keys, values, p)
        if step.soft_cap > 0:
            cap_all(p, keys.n, np.float32(step.soft_cap))
        largest, mass = _softmax(p, keys.n, sink)

        following, following_n, base = tokens + 8 * K * ((row + 1) % 2), 0, keys.base
        if row + 1 < end:
            following_n, bad = _valid_indices(step, row + 1, following)
            b, h, l = _split(row + 1, H, L)
            base = step.k + b * step.k_b + h // G * step.k_h
        keys = Chosen(base, step.k_s, following, following_n, size * D)
        _sum_values(Dv, dtype, values, p, sums, keys)
        if values.n > 0:
            for d in range(0, Dv, LANES):
                store_float32(sums + 4 * d, load_float32(sums + 4 * d) / to_all(mass))
            store_scalar_float32(step.lse + 4 * row, largest + np.float32(math.log(mass)))
        else:
            store_scalar_float32(step.lse + 4 * row, sink)
        narrow_row(sums, Dv, step.out + item_bytes(step.out_dtype) * Dv * row, step.out_dtype)
    return bad


@inlined
def sink_of(record, h):
    """The logit of a query head's sink, -inf where there is none."""
    if record.sink_logits == 0:
        return np.float32(-np.inf)
    return load_scalar_float32(record.sink_logits + 4 * h)


@inlined
def _split(row, H, L):
    """The batch, head and query of a row."""
    head, l = divmod(row, L)
    b, h = divmod(head, H)
    return b, h, l


@inlined
def _valid_indices(step, row, tokens):
    """Store the indices of a row that are not negative. Returns their number, and a bad one or -1.

    An index >= S is bad.
    """
    K, S = step.budget, step.S
    indices = step.indices + 4 * K * row
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
def _row(rows, i):
    """Address of the i-th chosen row."""
    return rows.base + rows.stride * load_int64(rows.tokens + 8 * i)


@inlined
def _scaled_query(q, dtype, D, scale, query):
    widen_row(q, dtype, D, query)
    for d in range(0, D, LANES):
        store_float32(query + 4 * d, load_float32(query + 4 * d) * to_all(scale))


@inlined
def _ask_for(rows, first):
    """Ask for a batch of rows."""
    for i in range(first, min(first + BATCH, rows.n)):
        row = _row(rows, i)
        for offset in range(0, rows.octets, LINE):
            prefetch(row + offset)


@inlined
def _logits(query, D, dtype, keys, values, logits):
    """q.k of the chosen rows, for a scaled q. Rows are asked for meanwhile."""
    size, n = item_bytes(dtype), keys.n
    whole = D - D % LANES
    batches = n - n % BATCH
    for i in range(0, batches, BATCH):
        if n <= MANY:
            _ask_for(values, i)
        else:
            _ask_for(keys, i + AHEAD)
        a, b, c, d = _row(keys, i), _row(keys, i + 1), _row(keys, i + 2), _row(keys, i + 3)
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
        a = _row(keys, i)
        sum_a = to_all(np.float32(0))
        for j in range(0, D, LANES):
            x = load_float32(query + 4 * j)
            sum_a = multiply_add(x, load_first_lanes(a + size * j, dtype, D - j), sum_a)
        store_scalar_float32(logits + 4 * i, sum_of(sum_a))


@inlined
def _softmax(p, n, sink):
    """Replace n logits by exp(logit - largest). Returns the largest, and the sum.

    The sink's logit may be the largest, and has a part in the sum.
    """
    for i in range(n, whole_lanes(n)):
        store_scalar_float32(p + 4 * i, np.float32(-np.inf))
    maximum = to_all(sink)
    for i in range(0, n, LANES):
        maximum = larger_number(maximum, load_float32(p + 4 * i))
    largest = largest_of(maximum)
    mass = to_all(np.float32(0))
    for i in range(0, n, LANES):
        share = exp(load_float32(p + 4 * i) - to_all(largest))
        store_float32(p + 4 * i, share)
        mass += share
    whole = sum_of(mass)
    if sink > -np.inf:
        whole += np.float32(math.exp(sink - largest))
    return largest, whole


@inlined
def _sum_values(Dv, dtype, values, p, sums, next_keys):
    """sums (Dv,) = the sum of p_i v_i over the chosen rows. The next row's keys are asked for.

    After sums there is room for a partial sum of as many floats.
    """
    zero = to_all(np.float32(0))
    partial = sums + 4 * whole_lanes(Dv)
    n = values.n
    for d in range(0, Dv, LANES):
        store_float32(sums + 4 * d, zero)
    for start in range(0, max(n, next_keys.n), PARTIAL):
        for d in range(0, Dv, LANES):
            store_float32(partial + 4 * d, zero)
        for i in range(start, min(start + PARTIAL, max(n, next_keys.n)), BATCH):
            if i < MANY:
                _ask_for(next_keys, i)
            if n > MANY:
                _ask_for(values, i + AHEAD)
            if i + BATCH <= n:
                _add_values(Dv, dtype, values, i, p, partial)
            else:
                for j in range(i, n):
                    _add_value(Dv, dtype, _row(values, j), p + 4 * j, partial)
        for d in range(0, Dv, LANES):
            sum_ = load_float32(sums + 4 * d) + load_float32(partial + 4 * d)
            store_float32(sums + 4 * d, sum_)


@inlined
def _add_values(Dv, dtype, values, i, p, partial):
    """partial (Dv,) += p_j v_j of a batch of rows, the first of which is the i-th chosen one."""
    size = item_bytes(dtype)
    whole = Dv - Dv % LANES
    a, b, c, d = _row(values, i), _row(values, i + 1), _row(values, i + 2), _row(values, i + 3)
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
    if whole < Dv:
        y = load_float32(partial + 4 * whole)
        at = size * whole
        left = Dv - whole
        y = multiply_add(p_a, load_first_lanes(a + at, dtype, left), y)
        y = multiply_add(p_b, load_first_lanes(b + at, dtype, left), y)
        y = multiply_add(p_c, load_first_lanes(c + at, dtype, left), y)
        y = multiply_add(p_d, load_first_lanes(d + at, dtype, left), y)
        store_float32(partial + 4 * whole, y)


@inlined
def _add_value(Dv, dtype, v, p, partial):
    """partial (Dv,) += p v of one row."""
    size = item_bytes(dtype)
    share = to_all(load_scalar_float32(p))
    for d in range(0, Dv, LANES):
        y = load_first_lanes(v + size * d, dtype, Dv - d)
        store_float32(partial + 4 * d, multiply_add(share, y, load_float32(partial + 4 * d)))
