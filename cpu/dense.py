"""Dense causal attention, a block of keys at a time with a running softmax.

Queries run along vector lanes: logits lie (key, query), so that maxima, sums and corrections are
lane by lane and nothing is summed across a vector. The G query heads of a KV head share its keys.
"""

from __future__ import annotations

import math
from math import gcd

import numba
import numpy as np
from numba import prange
from numpy.typing import NDArray

from ._array import (
    BFLOAT16,
    FLOAT16,
    FLOAT32,
    LANES,
    address,
    dtype_code,
    item_bytes,
    narrow_row,
    widen_row,
)
from ._jit import inlined, kernel, part
from ._matmul import VECTOR_BYTES, add_matmul
from ._simd import (
    exp,
    larger_number,
    load_float32,
    load_scalar_float32,
    multiply_add,
    store_float32,
    store_scalar_float32,
    to_all,
)
from .score import visible_tokens

LOWEST = np.float32(np.finfo(np.float32).min)
DEPTH = 64  # terms of q.k summed at once, for the sake of rounding
KEYS = 128  # keys a block: its logits against 64 queries are 32 KiB


def attend_dense(
    q: NDArray,
    k: NDArray,
    v: NDArray,
    scale: float,
    out: NDArray,
    lse: NDArray[np.float32],
) -> None:
    """Fill out (B, H, L, D) and lse (B, H, L) for queries that are the last L of S tokens."""
    B, H, L, D = q.shape
    H_kv, S = k.shape[1:3]
    if not out.size:
        return
    rows = H // H_kv * L  # of one KV head
    vectors = 1 if rows <= LANES else 4
    items = B * H_kv * -(-rows // (LANES * vectors))
    threads = numba.get_num_threads()
    # Few items (decoding) are split along the keys too, so that no thread is idle.
    splits = 1 if items >= 8 * threads else threads // gcd(items, threads)
    padded = -(-D // LANES) * LANES
    parts = np.empty((B * H * L, splits, padded), np.float32)
    part_lse = np.empty((B * H * L, splits), np.float32)
    _attend_dense(
        *(address(q), dtype_code(q), *q.strides[:3], B, H, L, D),
        *(address(k), *k.strides[:3], address(v), *v.strides[:3], dtype_code(k), H_kv, S),
        *(scale, vectors, splits, address(parts), address(part_lse), address(out), address(lse)),
    )


@kernel
def _attend_dense(
    q, q_dtype, q_b, q_h, q_l, B, H, L, D, k, k_b, k_h, k_s, v, v_b, v_h, v_s, dtype, H_kv, S,
    scale, vectors, splits, parts, part_lse, out, lse,
):  # fmt: skip
    rows = H // H_kv * L
    columns = LANES * vectors
    blocks = (rows + columns - 1) // columns
    padded = (D + LANES - 1) // LANES * LANES
    for item in prange(B * H_kv * blocks * splits):
        # Queries and sums (D, columns), logits (KEYS, columns), a row of queries or of the result;
        # keys and values (KEYS, D) where they must be widened; per column: largest logit,
        # mass, correction, visible tokens.
        widened = 0 if dtype == FLOAT32 else KEYS * padded
        floats = np.empty((2 * D + KEYS + 3) * columns + padded + widened, np.float32)
        limits = np.empty(columns, np.int64)
        head_block, split = divmod(item, splits)
        head, block = divmod(head_block, blocks)
        b, h_kv = divmod(head, H_kv)
        first = block * columns
        count = min(columns, rows - first)
        source = q + b * q_b + h_kv * (H // H_kv) * q_h
        row = splits * (head * rows + first) + split
        _attend_block(
            source, q_dtype, q_h, q_l, L, D, first, count, k + b * k_b + h_kv * k_h, k_s,
            v + b * v_b + h_kv * v_h, v_s, dtype, S, np.float32(scale), vectors,
            split, splits, parts + 4 * padded * row, part_lse + 4 * row, floats, limits,
        )  # fmt: skip
    for row in prange(B * H * L):
        at = splits * row
        visible = visible_tokens(S, L, row % L)
        _merge(
            D, padded, splits, parts + 4 * padded * at, part_lse + 4 * at, visible,
            out + item_bytes(q_dtype) * D * row, q_dtype, lse + 4 * row,
        )  # fmt: skip


@part
def _attend_block(
    q, q_dtype, q_h, q_l, L, D, first, count, k, k_s, v, v_s, dtype, S, scale, vectors,
    split, splits, parts, part_lse, floats, visible,
):  # fmt: skip
    """Up to 16 * vectors query rows of one KV head against one split of the keys."""
    columns = LANES * vectors
    padded = (D + LANES - 1) // LANES * LANES
    line = 4 * columns  # bytes of a row of queries, sums or logits
    queries = floats.ctypes.data
    sums = queries + line * D
    logits = sums + line * D
    largest = logits + line * KEYS
    mass = largest + line
    correction = mass + line
    row = correction + line
    wide = row + 4 * padded

    end = 0
    for c in range(columns):
        visible[c] = S  # columns of no query hold zeros and hurt nobody
        if c < count:
            g, l = divmod(first + c, L)
            visible[c] = visible_tokens(S, L, l)
            end = max(end, visible[c])
            widen_row(q + g * q_h + l * q_l, q_dtype, D, row)
        for d in range(D):
            x = load_scalar_float32(row + 4 * d) * scale if c < count else np.float32(0)
            store_scalar_float32(queries + line * d + 4 * c, x)
            store_scalar_float32(sums + line * d + 4 * c, np.float32(0))
        store_scalar_float32(largest + 4 * c, np.float32(-np.inf))
        store_scalar_float32(mass + 4 * c, np.float32(0))

    blocks = (end + KEYS - 1) // KEYS
    for block in range(blocks * split // splits, blocks * (split + 1) // splits):
        start = block * KEYS
        keys = min(KEYS, end - start)
        at, step = _as_float32(k + start * k_s, k_s, dtype, keys, D, padded, wide)
        for c in range(0, line * keys, VECTOR_BYTES):
            store_float32(logits + c, to_all(np.float32(0)))
        for d in range(0, D, DEPTH):
            depth = min(DEPTH, D - d)
            if vectors == 4:
                add_matmul(logits, at + 4 * d, step, 4, keys, queries + line * d, depth, 4)
            else:
                add_matmul(logits, at + 4 * d, step, 4, keys, queries + line * d, depth, 1)
        for c in range(columns):
            for s in range(max(visible[c] - start, 0), keys):
                store_scalar_float32(logits + line * s + 4 * c, np.float32(-np.inf))
        _softmax_step(logits, keys, line, largest, mass, correction)
        for d in range(D):
            for c in range(0, line, VECTOR_BYTES):
                z = load_float32(sums + line * d + c) * load_float32(correction + c)
                store_float32(sums + line * d + c, z)
        at, step = _as_float32(v + start * v_s, v_s, dtype, keys, D, padded, wide)
        if vectors == 4:
            add_matmul(sums, at, 4, step, D, logits, keys, 4)
        else:
            add_matmul(sums, at, 4, step, D, logits, keys, 1)

    for c in range(count):
        m = load_scalar_float32(mass + 4 * c)
        log_sum = load_scalar_float32(largest + 4 * c) + np.float32(math.log(m))
        for d in range(D):
            x = load_scalar_float32(sums + line * d + 4 * c)
            y = np.float32(0) if m == 0 else x / m
            store_scalar_float32(parts + 4 * (splits * padded * c + d), y)
        store_scalar_float32(part_lse + 4 * splits * c, log_sum)


@inlined
def _as_float32(rows, stride, dtype, count, D, padded, wide):
    """Address and stride of `count` rows as float32: where they lie, or widened into `wide`."""
    if dtype == FLOAT32:
        return rows, stride
    for s in range(count):
        if dtype == FLOAT16:
            widen_row(rows + s * stride, FLOAT16, D, wide + 4 * padded * s)
        else:
            widen_row(rows + s * stride, BFLOAT16, D, wide + 4 * padded * s)
    return wide, 4 * padded


@inlined
def _softmax_step(logits, keys, line, largest, mass, correction):
    """exp(logit - largest) in place, largest and mass brought up to date, and by which factor.

    Where all logits so far are -inf the exponents are taken against the lowest float32 instead, so
    that -inf gives 0 and not NaN. A NaN logit makes the mass NaN, for good.
    """
    for c in range(0, line, VECTOR_BYTES):
        old = load_float32(largest + c)
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
        store_float32(mass + c, multiply_add(load_float32(mass + c), factor, sum_))
        store_float32(largest + c, new)
        store_float32(correction + c, factor)


@part
def _merge(D, padded, splits, parts, part_lse, visible, out, out_dtype, lse):
    """Put the splits of one row together in the first of them, and round it into out."""
    largest = np.float32(-np.inf)
    for split in range(splits):
        largest = max(largest, load_scalar_float32(part_lse + 4 * split))
    log_sum = load_scalar_float32(part_lse)
    if visible > 0 and (splits > 1 or largest == -np.inf):
        # Logits that are all -inf have no softmax: -inf - -inf makes the NaN they should give.
        mass = np.float32(0)
        for split in range(splits):
            mass += math.exp(load_scalar_float32(part_lse + 4 * split) - largest)
        log_sum = largest + math.log(mass)
        for d in range(D):
            x = np.float32(0)
            for split in range(splits):
                share = math.exp(load_scalar_float32(part_lse + 4 * split) - largest)
                x += share * load_scalar_float32(parts + 4 * (padded * split + d))
            store_scalar_float32(parts + 4 * d, np.float32(x / mass))
    narrow_row(parts, D, out, out_dtype)
    store_scalar_float32(lse, np.float32(log_sum))
