"""Dense causal attention, a block of keys at a time with a running softmax.

Queries run along vector lanes: logits lie (key, query). So maxima, sums and corrections are lane by
lane, and nothing is summed across a vector. The G query heads of a KV head share its keys.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numba.np.numpy_support import carray

from .._array import BFLOAT16, FLOAT16, FLOAT32
from .._records import Dense
from ._cap import cap_all
from ._exp import exp
from ._float_rows import LANES, item_bytes, narrow_row, whole_lanes, widen_row
from ._jit import inlined, opaque, outlined
from ._matmul import VECTOR_BYTES, add_matmul
from ._memory import loop_at, reader
from ._simd import (
    larger_number,
    load_first_float32,
    load_float32,
    load_scalar_float32,
    multiply_add,
    pointer,
    store_float32,
    store_scalar_float32,
    sum_of,
    to_all,
)
from ._visible import visible_tokens
from .attend import sink_of

LOWEST = np.float32(np.finfo(np.float32).min)
DEPTH = 64  # terms of q.k summed at once: short sums round less
BLOCK_KEYS = 128  # the logits of a block against 64 queries are 32 KiB

dense_at = reader(Dense)


class Columns(NamedTuple):
    """Up to 16 * vectors query rows of one KV head, and addresses in their scratch, float32."""

    first: int  # the first query row
    rows: int  # how many there are
    line: int  # bytes of a line: one number per column
    queries: int  # (D, columns)
    sums: int  # (Dv, columns)
    logits: int  # (BLOCK_KEYS, columns)
    largest: int  # logit so far, one line
    mass: int  # one line
    correction: int  # one line
    row: int  # a query
    wide: int  # (BLOCK_KEYS, D or Dv): keys or values that have to be widened


@inlined
def _columns(record, block, floats):
    rows = record.H // record.H_kv * record.L
    columns = LANES * record.vectors
    first, line = block * columns, 4 * columns
    queries = floats
    sums = queries + line * record.D
    logits = sums + line * record.Dv
    largest = logits + line * BLOCK_KEYS
    row = largest + 3 * line
    return Columns(
        first, min(columns, rows - first), line, queries, sums, logits,
        largest, largest + line, largest + 2 * line, row, row + 4 * whole_lanes(record.D),
    )  # fmt: skip


@inlined
def gcd(a, b):
    """The greatest common divisor of two positive numbers."""
    while b:
        a, b = b, a % b
    return a


@opaque
def plan_dense(at):
    """Blocks of queries against splits of the keys; then the splits of each row are merged.

    Few items (decoding) are split along the keys too, so that no thread is idle.
    """
    loop = loop_at(at)
    record = dense_at(loop.record)
    heads, rows = record.B * record.H_kv, record.H // record.H_kv * record.L
    record.vectors = 1 if rows <= LANES else 4
    columns = LANES * record.vectors
    items = heads * ((rows + columns - 1) // columns)
    threads = loop.threads
    record.splits = 1 if items >= 8 * threads else threads // gcd(items, threads)
    loop.items = items * record.splits
    loop.rest = heads * rows
    loop.scratch = 8 * columns + 4 * _floats(record)
    loop.shared = 4 * heads * rows * record.splits * (whole_lanes(record.Dv) + 1)
    return 0


@opaque
def place_dense(at, memory):
    """The memory of the splits' results."""
    record = dense_at(loop_at(at).record)
    record.parts = memory
    rows = record.B * record.H * record.L
    record.part_lse = memory + 4 * rows * record.splits * whole_lanes(record.Dv)
    return 0


@inlined
def _floats(record):
    """How many float32 `_columns` needs."""
    columns = LANES * record.vectors
    widest = whole_lanes(max(record.D, record.Dv))
    wide = 0 if record.kv_dtype == FLOAT32 else BLOCK_KEYS * widest
    return (record.D + record.Dv + BLOCK_KEYS + 3) * columns + whole_lanes(record.D) + wide


@opaque
def attend_block(at, item, scratch):
    """A block of query rows of one KV head against one split of the keys."""
    record = dense_at(at)
    D, Dv, dtype = record.D, record.Dv, record.kv_dtype
    vectors, splits = record.vectors, record.splits
    counts = LANES * vectors
    floats = scratch + 8 * counts
    visible = carray(pointer(scratch), counts, np.int64)
    blocks = (record.H // record.H_kv * record.L + counts - 1) // counts
    head_block, split = divmod(item, splits)
    head, block = divmod(head_block, blocks)
    b, h = divmod(head, record.H_kv)
    columns = _columns(record, block, floats)
    keys = record.k + b * record.k_b + h * record.k_h
    values = record.v + b * record.v_b + h * record.v_h
    line, logits, sums = columns.line, columns.logits, columns.sums
    least, end = _load_queries(record, b, h, columns, visible)
    window = record.window
    skipped = max(least - window, 0) // BLOCK_KEYS  # blocks that no query sees
    key_blocks = (end + BLOCK_KEYS - 1) // BLOCK_KEYS - skipped
    for i in range(key_blocks * split // splits, key_blocks * (split + 1) // splits):
        start = (skipped + i) * BLOCK_KEYS
        count = min(BLOCK_KEYS, end - start)
        source, stride = _as_float32(
            keys + start * record.k_s, record.k_s, dtype, count, D, columns.wide
        )
        for c in range(0, line * count, VECTOR_BYTES):
            store_float32(logits + c, to_all(np.float32(0)))
        for d in range(0, D, DEPTH):
            depth, queries = min(DEPTH, D - d), columns.queries + line * d
            if vectors == 4:
                add_matmul(logits, source + 4 * d, stride, 4, count, queries, depth, 4)
            else:
                add_matmul(logits, source + 4 * d, stride, 4, count, queries, depth, 1)
        if record.soft_cap > 0:
            cap_all(logits, LANES * vectors * count, np.float32(record.soft_cap))
        for c in range(LANES * vectors):
            for s in range(min(visible[c] - window - start, count)):
                store_scalar_float32(logits + line * s + 4 * c, np.float32(-np.inf))
            for s in range(max(visible[c] - start, 0), count):
                store_scalar_float32(logits + line * s + 4 * c, np.float32(-np.inf))
        _update_softmax(columns, count)
        for d in range(Dv):
            for c in range(0, line, VECTOR_BYTES):
                z = load_float32(sums + line * d + c) * load_float32(columns.correction + c)
                store_float32(sums + line * d + c, z)
        source, stride = _as_float32(
            values + start * record.v_s, record.v_s, dtype, count, Dv, columns.wide
        )
        # Rows that all queries see need no check.
        first_unsure = 0 if start < end - window else max(least - start, 0)
        if not _all_finite(source, stride, first_unsure, count, Dv):
            _add_seen_values(columns, visible, window, start, source, stride, count, Dv)
        elif vectors == 4:
            add_matmul(sums, source, 4, stride, Dv, logits, count, 4)
        else:
            add_matmul(sums, source, 4, stride, Dv, logits, count, 1)
    _store_part(record, splits * (head * (record.H // record.H_kv) * record.L) + split, columns)
    return 0


@inlined
def _load_queries(record, b, h, columns, visible):
    """Load the scaled queries and their numbers of visible tokens; returns the least and largest.

    A column without a query holds zeros and sees all tokens, which changes no result.
    """
    L, D, line = record.L, record.D, columns.line
    scale = np.float32(record.scale)
    source = record.q + b * record.q_b + h * (record.H // record.H_kv) * record.q_h
    least, largest = record.S, 0
    for c in range(LANES * record.vectors):
        visible[c] = record.S
        if c < columns.rows:
            g, l = divmod(columns.first + c, L)
            visible[c] = visible_tokens(record.S, L, l)
            least, largest = min(least, visible[c]), max(largest, visible[c])
            widen_row(source + g * record.q_h + l * record.q_l, record.q_dtype, D, columns.row)
        for d in range(D):
            x = np.float32(0)
            if c < columns.rows:
                x = load_scalar_float32(columns.row + 4 * d) * scale
            store_scalar_float32(columns.queries + line * d + 4 * c, x)
        for d in range(record.Dv):
            store_scalar_float32(columns.sums + line * d + 4 * c, np.float32(0))
        store_scalar_float32(columns.largest + 4 * c, np.float32(-np.inf))
        store_scalar_float32(columns.mass + 4 * c, np.float32(0))
    return least, largest


@inlined
def _as_float32(rows, stride, dtype, count, D, wide):
    """Address and stride of `count` rows as float32: where they lie, or widened into `wide`."""
    if dtype == FLOAT32:
        return rows, stride
    width = 4 * whole_lanes(D)
    for s in range(count):
        if dtype == FLOAT16:
            widen_row(rows + s * stride, FLOAT16, D, wide + width * s)
        else:
            widen_row(rows + s * stride, BFLOAT16, D, wide + width * s)
    return wide, width


@inlined
def _update_softmax(columns, keys):
    """Replace logits by exp(logit - largest), and update the largest, the mass and the correction.

    If all logits so far are -inf, the exponents are taken against the lowest float32 instead, so
    that -inf gives 0 and not NaN. A NaN logit makes the mass NaN, for good.
    """
    line, logits = columns.line, columns.logits
    for c in range(0, line, VECTOR_BYTES):
        old = load_float32(columns.largest + c)
        new = old
        for s in range(keys):
            new = larger_number(new, load_float32(logits + line * s + c))
        base = larger_number(new, to_all(LOWEST))
        sum_ = to_all(np.float32(0))
        for s in range(keys):
            share = exp(load_float32(logits + line * s + c) - base)
            store_float32(logits + line * s + c, share)
            sum_ += share
        factor = exp(old - base)
        store_float32(columns.mass + c, multiply_add(load_float32(columns.mass + c), factor, sum_))
        store_float32(columns.largest + c, new)
        store_float32(columns.correction + c, factor)


@outlined
def _all_finite(rows, stride, first, end, D):
    """Whether the rows first .. end hold finite float32 alone."""
    zero = to_all(np.float32(0))
    total = zero
    for s in range(first, end):
        row = rows + stride * s
        for d in range(0, D, LANES):
            total += zero * load_first_float32(row + 4 * d, D - d)
    return sum_of(total) == 0  # infinity and NaN times 0 are NaN


@outlined
def _add_seen_values(columns, visible, window, start, values, stride, keys, Dv):
    """Add the weighted values of a block to the sums, for each query those that it sees alone.

    The matrix product gives other values the weight 0, and 0 times infinity or NaN is NaN.
    """
    line = columns.line
    for c in range(columns.rows):
        for d in range(Dv):
            at = columns.sums + line * d + 4 * c
            total = load_scalar_float32(at)
            for s in range(max(visible[c] - window - start, 0), min(visible[c] - start, keys)):
                share = load_scalar_float32(columns.logits + line * s + 4 * c)
                total += share * load_scalar_float32(values + stride * s + 4 * d)
            store_scalar_float32(at, total)


@inlined
def _store_part(record, first_part, columns):
    """The results of one split. first_part is the part of the KV head's first query row."""
    Dv, line, splits = record.Dv, columns.line, record.splits
    part_bytes = 4 * whole_lanes(Dv)
    for c in range(columns.rows):
        part = first_part + splits * (columns.first + c)
        m = load_scalar_float32(columns.mass + 4 * c)
        log_sum = load_scalar_float32(columns.largest + 4 * c) + np.float32(math.log(m))
        for d in range(Dv):
            x = load_scalar_float32(columns.sums + line * d + 4 * c)
            y = np.float32(0) if m == 0 else x / m
            store_scalar_float32(record.parts + part_bytes * part + 4 * d, y)
        store_scalar_float32(record.part_lse + 4 * part, log_sum)


@opaque
def merge_splits(at, row, scratch):
    """Merge the splits of one row and its sink into the first split, and round it into out."""
    record = dense_at(at)
    Dv, splits = record.Dv, record.splits
    part_bytes = 4 * whole_lanes(Dv)
    parts = record.parts + part_bytes * splits * row
    part_lse = record.part_lse + 4 * splits * row
    visible = visible_tokens(record.S, record.L, row % record.L)
    sink = sink_of(record, row // record.L % record.H)
    largest = sink
    for split in range(splits):
        largest = max(largest, load_scalar_float32(part_lse + 4 * split))
    log_sum = load_scalar_float32(part_lse) if visible > 0 else sink
    if visible > 0 and (splits > 1 or sink > -np.inf or largest == -np.inf):
        # Logits that are all -inf have no softmax: -inf - -inf makes the NaN that is due.
        mass = np.float32(math.exp(sink - largest)) if sink > -np.inf else np.float32(0)
        for split in range(splits):
            mass += math.exp(load_scalar_float32(part_lse + 4 * split) - largest)
        log_sum = largest + math.log(mass)
        for d in range(Dv):
            x = np.float32(0)
            for split in range(splits):
                share = math.exp(load_scalar_float32(part_lse + 4 * split) - largest)
                x += share * load_scalar_float32(parts + part_bytes * split + 4 * d)
            store_scalar_float32(parts + 4 * d, np.float32(x / mass))
    narrow_row(parts, Dv, record.out + item_bytes(record.q_dtype) * Dv * row, record.q_dtype)
    store_scalar_float32(record.lse + 4 * row, np.float32(log_sum))
    return 0
