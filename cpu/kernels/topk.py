"""Exact selection of the nearest tokens.

Distances are small integers, so bisection finds the k-th smallest: each try counts the distances up
to a bound, 64 per mask. All smaller distances are taken, and of the distances equal to the k-th
those of the newest tokens. Two selections merge by one more selection from both. That is exact,
because distance and age order all tokens.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba.core import types

from adamas_core.reference.layout import INVISIBLE

from .._records import TopK
from ._jit import inlined, opaque, outlined
from ._memory import loop_at, reader
from ._simd import (
    I1,
    I16,
    I64,
    call,
    constant,
    count_bits,
    highest_bit,
    load,
    load_int32,
    load_uint16,
    mask_bits,
    operation,
    splat,
    store_int32,
    store_uint16,
)
from ._visible import forced_tokens

MASK_BITS = 64  # distances per mask
COUNTED = 1024  # distances that count_many looks at

topk_at = reader(TopK)


# ---- masks and counts of distances -------------------------------------------------------------


@operation(types.uint64, types.int64, types.int64)
def mask_at_most(builder: Any, address: Any, bound: Any) -> Any:
    """Which of the 64 uint16 at address are <= bound (0 <= bound <= 65535)."""
    vector = ir.VectorType(I16, MASK_BITS)
    bounds = splat(builder, vector, builder.trunc(bound, I16))
    return mask_bits(builder, builder.icmp_unsigned("<=", load(builder, address, vector), bounds))


@operation(types.int64, types.int64, types.int64)
def count_many(builder: Any, address: Any, bound: Any) -> Any:
    """How many of COUNTED uint16 at address are <= bound. All masks stay in vector registers."""
    vector = ir.VectorType(I16, 32)
    bounds = splat(builder, vector, builder.trunc(bound, I16))
    counts = constant(vector, 0)
    for i in range(COUNTED // 32):
        distances = load(builder, builder.add(address, I64(64 * i)), vector)
        within = builder.icmp_unsigned("<=", distances, bounds)
        counts = builder.sub(counts, builder.sext(within, vector))
    total = call(builder, "llvm.vector.reduce.add.v32i16", I16, counts)
    return builder.zext(total, I64)


@operation(types.int64, types.uint64)
def lowest_bit(builder: Any, word: Any) -> Any:
    """The position of the lowest bit that is set, or 64 if there is none."""
    return call(builder, "llvm.cttz.i64", I64, word, I1(0))


@inlined
def mask_within(at, n, bound):
    """mask_at_most of the first n of up to 64 distances. Nothing after them is read."""
    if n >= MASK_BITS:
        return mask_at_most(at, bound)
    mask = np.uint64(0)
    for i in range(n):
        if load_uint16(at + 2 * i) <= bound:
            mask |= np.uint64(1) << np.uint64(i)
    return mask


@inlined
def those_between(mask, token, start, end):
    """The bits of tokens start .. end in a mask of 64 tokens, the first of which is `token`."""
    if token + MASK_BITS > end:
        mask &= (np.uint64(1) << np.uint64(end - token)) - np.uint64(1)
    if token < start:
        mask &= ~((np.uint64(1) << np.uint64(start - token)) - np.uint64(1))
    return mask


@outlined
def count_at_most(distances, n, bound, enough):
    """How many of n distances are <= bound. Counting may stop at `enough`."""
    count = 0
    whole = n - n % COUNTED
    for s in range(0, whole, COUNTED):
        count += count_many(distances + 2 * s, bound)
        if count >= enough:
            return count
    for s in range(whole, n, MASK_BITS):
        count += count_bits(mask_within(distances + 2 * s, n - s, bound))
    return count


@outlined
def kth_smallest(distances, n, k, high):
    """The smallest bound for which at least k of n distances are <= bound; at most `high`.

    The bound goes down from `high`, each time twice as far, until too few distances are left. Then
    comes bisection. `high` is often near the result, and counts far above the result end early.
    """
    low = 0
    down = 1
    while high > 0:
        low = max(high - down, 0)
        if count_at_most(distances, n, low, k) < k:
            low += 1
            break
        high = low
        down *= 2
    while low < high:
        middle = (low + high) // 2
        if count_at_most(distances, n, middle, k) >= k:
            high = middle
        else:
            low = middle + 1
    return low


# ---- selection from distances that are all there -----------------------------------------------


@opaque
def plan_topk(at):
    loop = loop_at(at)
    record = topk_at(loop.record)
    loop.items = record.B * record.H * record.L
    return 0


@opaque
def topk_row(at, row, scratch):
    """The indices of one row. It needs no scratch."""
    record = topk_at(at)
    S, budget = record.S, record.budget
    head, l = divmod(row, record.L)
    b, h = divmod(head, record.H)
    distances = record.distances
    distances += b * record.stride_b + h * record.stride_h + l * record.stride_l
    indices = record.indices + 4 * budget * row
    visible = count_at_most(distances, S, INVISIBLE - 1, S + 1)
    sinks, sinks_taken, middle_end, recent_taken = forced_tokens(visible, budget, record)
    # These count visible tokens. Find their positions among all tokens.
    first_sink = _position(distances, S, sinks - sinks_taken)
    start = _position(distances, S, sinks)
    end = _position(distances, S, middle_end)
    first_recent = _position(distances, S, visible - recent_taken)
    k = budget - sinks_taken - recent_taken
    n = _append_topk_between(distances, first_sink, start, sinks_taken, indices)
    n += _append_topk_between(distances, start, end, k, indices + 4 * n)
    n += _append_topk_between(distances, first_recent, S, recent_taken, indices + 4 * n)
    while n < budget:
        store_int32(indices + 4 * n, np.int32(-1))
        n += 1
    return 0


@outlined
def _position(distances, S, ordinal):
    """Position of the visible token that has `ordinal` visible ones before it; S if none has."""
    for s in range(0, S, MASK_BITS):
        mask = mask_within(distances + 2 * s, S - s, INVISIBLE - 1)
        count = count_bits(mask)
        if count > ordinal:
            for _ in range(ordinal):
                mask &= mask - np.uint64(1)
            return s + lowest_bit(mask)
        ordinal -= count
    return S


@outlined
def _append_topk_between(distances, start, end, k, indices):
    """Append the k nearest of the tokens start .. end, or all visible ones if they are fewer."""
    at, n, largest = distances + 2 * start, end - start, INVISIBLE - 1
    if k <= 0:
        return 0
    if count_at_most(at, n, largest, k + 1) <= k:
        return _append_nearest(at, n, largest, 0, start, indices)
    bound = kth_smallest(at, n, k, largest)
    skip = count_at_most(at, n, bound, n + 1) - k
    return _append_nearest(at, n, bound, skip, start, indices)


@outlined
def _append_nearest(distances, n, bound, skip, first, indices):
    """Append the tokens `first + i` whose distance is <= bound, in ascending order.

    The `skip` oldest of those equal to the bound are left out. Returns how many are appended.
    """
    count = 0
    for s in range(0, n, MASK_BITS):
        mask = mask_within(distances + 2 * s, n - s, bound)
        while mask:
            i = s + lowest_bit(mask)
            mask &= mask - np.uint64(1)
            if skip > 0 and load_uint16(distances + 2 * i) == bound:
                skip -= 1
                continue
            store_int32(indices + 4 * count, np.int32(first + i))
            count += 1
    return count


# ---- candidates: tokens and their distances, newest first, collected while scores are made -----


@inlined
def move_candidate(indices, ranks, source, target):
    store_int32(indices + 4 * target, load_int32(indices + 4 * source))
    store_uint16(ranks + 2 * target, load_uint16(ranks + 2 * source))


@outlined
def keep_nearest(indices, ranks, n, k, high):
    """Reduce n >= k candidates, newest first, to the k nearest; returns the k-th distance.

    `high` < 65535 is known to be no less than it. The places after the last rank are filled up to
    the next multiple of 64, so that ranks can be counted 64 at a time.
    """
    filled = (n + MASK_BITS - 1) // MASK_BITS * MASK_BITS
    for i in range(n, filled):
        store_uint16(ranks + 2 * i, np.uint16(INVISIBLE))
    bound = kth_smallest(ranks, filled, k, high)
    ties = k - (count_at_most(ranks, filled, bound - 1, n + 1) if bound > 0 else 0)
    count = 0
    for i in range(n):
        rank = load_uint16(ranks + 2 * i)
        move_candidate(indices, ranks, i, count)  # no branch decides whether it stays
        tie = (rank == bound) & (ties > 0)
        ties -= tie
        count += (rank < bound) | tie
    return bound


@outlined
def append_newest(distances, start, end, bound, first, indices, ranks, count, room, k):
    """Append the tokens start .. end whose distance is <= bound as candidates, newest first.

    `distances` are those of whole tiles, from token `first` on. When there is less room than for
    another tile, the candidates are reduced to the k nearest. From then on only a smaller distance
    can enter, because the tokens that follow are older. So `bound` becomes one less than the k-th
    distance, until k smaller ones have been found. Returns the number of candidates and the bound.
    """
    for tile in range((end - 1 - first) // MASK_BITS, (start - first) // MASK_BITS - 1, -1):
        if bound < 0:
            break
        token = first + MASK_BITS * tile
        at = distances + 2 * MASK_BITS * tile
        mask = those_between(mask_at_most(at, bound), token, start, end)
        while mask:
            bit = highest_bit(mask)
            mask ^= np.uint64(1) << np.uint64(bit)
            store_int32(indices + 4 * count, np.int32(token + bit))
            store_uint16(ranks + 2 * count, load_uint16(at + 2 * bit))
            count += 1
        if count > room - MASK_BITS:
            high = min(bound + 1, INVISIBLE - 1)
            bound = keep_nearest(indices, ranks, count, k, high) - 1
            count = k
    return count, bound
