"""Exact selection of the nearest tokens.

Distances are small integers, so the k-th smallest is found by bisection: one step counts the
distances up to a bound, 64 a mask. What lies below the k-th is taken, and of those equal to it
the newest. Two selections merge by selecting once more from both, which is exact because distance
and age order all tokens.
"""

from __future__ import annotations

import numpy as np
from numba import prange
from numpy.typing import NDArray

from adamas_core.reference.score import INVISIBLE

from ._array import address, with_four_axes
from ._jit import inlined, kernel, part
from ._simd import (
    COUNTED,
    count_bits,
    count_many,
    highest_bit,
    load_int32,
    load_uint16,
    lowest_bit,
    mask_at_most,
    store_int32,
    store_uint16,
)

STEP = 64  # distances a mask


def topk(
    distances: NDArray[np.uint16], budget: int, sinks: int = 0, recent: int = 0
) -> NDArray[np.int32]:
    """Indices (B, H, L, budget) of the tokens with the smallest distances (B, H, L, S)."""
    indices = np.empty((*distances.shape[:-1], budget), np.int32)
    if indices.size:
        rows = with_four_axes(distances)
        layout = address(rows), *rows.strides[:3], *rows.shape
        _topk(*layout, budget, sinks, recent, address(indices))
    return indices


@inlined
def mask_within(at, n, bound):
    """mask_at_most of the first n of up to 64 distances; nothing behind them is read."""
    if n >= STEP:
        return mask_at_most(at, bound)
    mask = np.uint64(0)
    for i in range(n):
        if load_uint16(at + 2 * i) <= bound:
            mask |= np.uint64(1) << np.uint64(i)
    return mask


@part
def count_at_most(distances, n, bound, enough):
    """How many of n distances are <= bound; where there are `enough`, counting may stop early."""
    count = 0
    whole = n - n % COUNTED
    for s in range(0, whole, COUNTED):
        count += count_many(distances + 2 * s, bound)
        if count >= enough:
            return count
    for s in range(whole, n, STEP):
        count += count_bits(mask_within(distances + 2 * s, n - s, bound))
    return count


@part
def kth_smallest(distances, n, k, high):
    """The smallest bound that at least k of n distances keep to, known to be at most `high`.

    Steps down from `high` double until too few do, then bisection: `high` is often near, and counts
    far above the result end early.
    """
    low = 0
    step = 1
    while high > 0:
        low = max(high - step, 0)
        if count_at_most(distances, n, low, k) < k:
            low += 1
            break
        high = low
        step *= 2
    while low < high:
        middle = (low + high) // 2
        if count_at_most(distances, n, middle, k) >= k:
            high = middle
        else:
            low = middle + 1
    return low


@part
def _append_nearest(distances, n, bound, skip, first, indices):
    """Append tokens `first + i` whose distance is <= bound, but not the `skip` oldest equal to it.

    In ascending order; returns how many.
    """
    count = 0
    for s in range(0, n, STEP):
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


@part
def _append_topk_between(distances, start, end, k, indices):
    """Append the k nearest of the tokens start .. end; all visible ones if they are fewer."""
    at, n, largest = distances + 2 * start, end - start, INVISIBLE - 1
    if k <= 0:
        return 0
    if count_at_most(at, n, largest, k + 1) <= k:
        return _append_nearest(at, n, largest, 0, start, indices)
    bound = kth_smallest(at, n, k, largest)
    skip = count_at_most(at, n, bound, n + 1) - k
    return _append_nearest(at, n, bound, skip, start, indices)


@inlined
def move_candidate(indices, ranks, source, target):
    store_int32(indices + 4 * target, load_int32(indices + 4 * source))
    store_uint16(ranks + 2 * target, load_uint16(ranks + 2 * source))


@part
def keep_nearest(indices, ranks, n, k, high):
    """Reduce n >= k candidates, newest first, to the k nearest; the k-th distance.

    `high` < 65535 is known to be no less than it. Up to the next multiple of 64 the places behind
    the last rank are filled, so that they can be counted 64 at a time.
    """
    padded = (n + STEP - 1) // STEP * STEP
    for i in range(n, padded):
        store_uint16(ranks + 2 * i, np.uint16(INVISIBLE))
    bound = kth_smallest(ranks, padded, k, high)
    ties = k - (count_at_most(ranks, padded, bound - 1, n + 1) if bound > 0 else 0)
    kept = 0
    for i in range(n):
        rank = load_uint16(ranks + 2 * i)
        move_candidate(indices, ranks, i, kept)  # whether it stays is decided without a branch
        tie = (rank == bound) & (ties > 0)
        ties -= tie
        kept += (rank < bound) | tie
    return bound


@inlined
def those_between(mask, token, start, end):
    """Of a mask of 64 tokens, the first of them `token`, the tokens start .. end."""
    if token + STEP > end:
        mask &= (np.uint64(1) << np.uint64(end - token)) - np.uint64(1)
    if token < start:
        mask &= ~((np.uint64(1) << np.uint64(start - token)) - np.uint64(1))
    return mask


@part
def append_newest(distances, start, end, bound, first, indices, ranks, count, room, k):
    """Append the tokens start .. end whose distance is <= bound, newest first, as candidates.

    `distances` are those of a whole number of tiles, the first of them of token `first`. When less
    than a tile's room is left the candidates are reduced to the k nearest, and from then on only a
    smaller distance can enter, because the others are newer: `bound` is then one below the k-th,
    which stays the k-th until k smaller ones are there. Returns their number and the bound.
    """
    for tile in range((end - 1 - first) // STEP, (start - first) // STEP - 1, -1):
        if bound < 0:
            break
        token = first + STEP * tile
        mask = those_between(mask_at_most(distances + 2 * STEP * tile, bound), token, start, end)
        while mask:
            bit = highest_bit(mask)
            mask ^= np.uint64(1) << np.uint64(bit)
            store_int32(indices + 4 * count, np.int32(token + bit))
            store_uint16(ranks + 2 * count, load_uint16(distances + 2 * (STEP * tile + bit)))
            count += 1
        if count > room - STEP:
            high = min(bound + 1, INVISIBLE - 1)
            bound = keep_nearest(indices, ranks, count, k, high) - 1
            count = k
    return count, bound


@part
def append_run(first, count, indices):
    """Append `count` tokens in a row, the first of them `first`."""
    for i in range(count):
        store_int32(indices + 4 * i, np.int32(first + i))
    return count


@part
def forced_tokens(visible, budget, sinks, recent):
    """Which visible tokens are taken whatever their distance.

    Of `visible` tokens the first `sinks` and the last `recent` all rank alike, so where they exceed
    the budget the newest are taken. Returns (sinks, how many of their newest are taken, start of
    the recent ones, how many of their newest are taken); what lies between competes for the rest.
    """
    recent = min(recent, visible)
    sinks = min(sinks, visible - recent)
    recent_taken = min(recent, budget)
    sinks_taken = min(sinks, budget - recent_taken)
    return sinks, sinks_taken, visible - recent, recent_taken


@part
def _position(distances, S, ordinal):
    """Where the visible token with `ordinal` visible ones before it stands; S if there is none."""
    for s in range(0, S, STEP):
        mask = mask_within(distances + 2 * s, S - s, INVISIBLE - 1)
        count = count_bits(mask)
        if count > ordinal:
            for _ in range(ordinal):
                mask &= mask - np.uint64(1)
            return s + lowest_bit(mask)
        ordinal -= count
    return S


@part
def _topk_row(distances, S, budget, sinks, recent, indices):
    visible = count_at_most(distances, S, INVISIBLE - 1, S + 1)
    sinks, sinks_taken, middle_end, recent_taken = forced_tokens(visible, budget, sinks, recent)
    # From the first token to each of these is a number of visible ones; where do they stand?
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


@kernel
def _topk(distances, stride_b, stride_h, stride_l, B, H, L, S, budget, sinks, recent, indices):
    for row in prange(B * H * L):
        head, l = divmod(row, L)
        b, h = divmod(head, H)
        at = distances + b * stride_b + h * stride_h + l * stride_l
        _topk_row(at, S, budget, sinks, recent, indices + 4 * budget * row)
