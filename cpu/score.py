"""Distances between queries and coded keys."""

from __future__ import annotations

import numpy as np
from numba import prange
from numpy.typing import NDArray

from adamas_core.reference.quantize import TILE
from adamas_core.reference.score import INVISIBLE

from ._array import LINE, address, aligned
from ._jit import inlined, invoke, kernel, opaque, part
from ._lookup import (
    TABLE_BYTES,
    look_up_high1,
    look_up_high2,
    look_up_high4,
    look_up_tile1,
    look_up_tile2,
    look_up_tile4,
    store_tables,
    usable,
)
from ._simd import (
    count_bits,
    load_int64,
    load_uint64,
    load_word_to_all,
    load_words,
    popcount,
    store_as_uint16,
    store_uint16,
    store_uint64,
    zero_words,
)

BLOCK = 32  # tiles a thread scores for every query head in turn; 64 KiB of codes at D = 128


def score(
    query: NDArray[np.uint64],
    planes: NDArray[np.uint64],
    length: int | NDArray[np.integer],
    metric: str = "weighted",
) -> NDArray[np.uint16]:
    """Distances (B, H, L, S), S = max(length): sum over coordinates of w_i |c_i - e_i|."""
    B, H, L, width = query.shape
    H_kv, P = planes.shape[2], planes.shape[5]
    lengths = np.empty(B, np.int64)
    lengths[:] = length
    S = int(lengths.max(initial=0))
    distances = np.empty((B, H, L, S), np.uint16)
    if distances.size:
        query = np.ascontiguousarray(query)
        weights = 0 if metric == "manhattan" else width // P - 1
        _score(
            *(address(query), address(planes), *planes.strides[:3], address(lengths)),
            *(B, H, H_kv, L, S, P, weights, address(distances), score_tile.address),
        )
    return distances


@inlined
def manhattan_tile(high, low, query, P, distances):
    """Distances of a tile's 64 tokens to a query's codes, by popcounts of bit planes.

    |c - e| for 2-bit codes: s marks an odd difference and d a difference of two or more.
    """
    for group in range(8):
        ones = zero_words()
        twos = zero_words()
        for p in range(P):
            at = 64 * (group * P + p)
            query_high = load_word_to_all(query + 8 * p)
            query_low = load_word_to_all(query + 8 * (P + p))
            s = load_words(low + at) ^ query_low
            d = (load_words(high + at) ^ query_high) & ~(s & (query_high ^ query_low))
            ones += popcount(s)
            twos += popcount(d)
        store_as_uint16(distances + 16 * group, ones + twos + twos)


@inlined
def weighted_tile(high, low, query, P, weights, distances):
    """The same for a query of a sign plane and `weights` planes, most significant first.

    At most 21 Dt <= 43008 with three weight planes, and 127 * 3 * Dt with seven: the words hold it,
    and the low 16 bits are what the specification's uint16 keeps.
    """
    for group in range(8):
        total = zero_words()
        for plane in range(1, weights + 1):
            ones = zero_words()
            twos = zero_words()
            for p in range(P):
                at = 64 * (group * P + p)
                sign = load_word_to_all(query + 8 * p)
                weight = load_word_to_all(query + 8 * (plane * P + p))
                twos += popcount((load_words(high + at) ^ sign) & weight)
                ones += popcount((load_words(low + at) ^ sign) & weight)
            total += twos
            total += total + ones
        store_as_uint16(distances + 16 * group, total)


@inlined
def signs_tile(high, query, P, weights, distances):
    """The same from the high plane alone, less what all tokens have: how dear the wrong signs are.

    A key's code is taken to be 0 or 3. Under the Manhattan metric the wrong one of these costs 3
    more than the right one where the query's code is 0 or 3 too, and 1 more where it is 1 or 2.
    """
    for group in range(8):
        total = zero_words()
        if weights == 0:
            for p in range(P):
                query_high = load_word_to_all(query + 8 * p)
                inner = query_high ^ load_word_to_all(query + 8 * (P + p))
                wrong = load_words(high + 64 * (group * P + p)) ^ query_high
                outer = popcount(wrong & ~inner)
                total += popcount(wrong) + outer + outer
        for plane in range(1, weights + 1):
            ones = zero_words()
            for p in range(P):
                wrong = load_words(high + 64 * (group * P + p)) ^ load_word_to_all(query + 8 * p)
                ones += popcount(wrong & load_word_to_all(query + 8 * (plane * P + p)))
            total += total + ones
        store_as_uint16(distances + 16 * group, total)


@inlined
def table_bytes(P, weights):
    """Of a prepared query's tables, behind which its words stand."""
    return TABLE_BYTES * P if usable(P, weights) else 0


@inlined
def query_bytes(P, weights):
    """Of a prepared query: a multiple of 64, so that tables stand on lines."""
    return (table_bytes(P, weights) + 8 * P * max(weights + 1, 2) + 63) // 64 * 64


@inlined
def add_tables(query, P, weights):
    """Complete a prepared query whose words have been written."""
    if usable(P, weights):
        store_tables(query + table_bytes(P, weights), P, weights, query)


@opaque
def score_tile(high, low, queries, rows, P, weights, planes, distances, gap):
    """Distances (uint16) of a tile to `rows` prepared queries, each `gap` bytes behind the last.

    weights = 0 is the Manhattan metric, planes = 1 looks at the high plane alone. Constant P and
    weights unroll the inner loops and keep the query in registers.
    """
    step = query_bytes(P, weights)
    if usable(P, weights):
        if planes == 1:
            if P == 1:
                look_up_high1(high, low, queries, step, rows, distances, gap)
            elif P == 2:
                look_up_high2(high, low, queries, step, rows, distances, gap)
            else:
                look_up_high4(high, low, queries, step, rows, distances, gap)
        elif P == 1:
            look_up_tile1(high, low, queries, step, rows, distances, gap)
        elif P == 2:
            look_up_tile2(high, low, queries, step, rows, distances, gap)
        else:
            look_up_tile4(high, low, queries, step, rows, distances, gap)
        return 0
    for row in range(rows):
        query = queries + step * row
        target = distances + gap * row
        if planes == 1:
            if weights == 0 and P == 1:
                signs_tile(high, query, 1, 0, target)
            elif weights == 0 and P == 2:
                signs_tile(high, query, 2, 0, target)
            else:
                signs_tile(high, query, P, weights, target)
        elif weights == 0:
            if P == 1:
                manhattan_tile(high, low, query, 1, target)
            elif P == 2:
                manhattan_tile(high, low, query, 2, target)
            elif P == 4:
                manhattan_tile(high, low, query, 4, target)
            else:
                manhattan_tile(high, low, query, P, target)
        elif weights == 3 and P == 1:
            weighted_tile(high, low, query, 1, 3, target)
        elif weights == 3 and P == 2:
            weighted_tile(high, low, query, 2, 3, target)
        elif weights == 2 and P == 1:
            weighted_tile(high, low, query, 1, 2, target)
        elif weights == 2 and P == 2:
            weighted_tile(high, low, query, 2, 2, target)
        else:
            weighted_tile(high, low, query, P, weights, target)
    return 0


@inlined
def manhattan_distance(high, low, query, P, token):
    """Of one token; `query` are the words."""
    at = 64 * P * (token // 8) + 8 * (token % 8)
    total = 0
    for p in range(P):
        query_high, query_low = load_uint64(query + 8 * p), load_uint64(query + 8 * (P + p))
        s = load_uint64(low + at + 64 * p) ^ query_low
        d = (load_uint64(high + at + 64 * p) ^ query_high) & ~(s & (query_high ^ query_low))
        total += count_bits(s) + 2 * count_bits(d)
    return total


@inlined
def low_distance(low, query, P, weights, token):
    """The low plane's share of one token's weighted distance; the high plane's counts twice."""
    at = 64 * P * (token // 8) + 8 * (token % 8)
    total = 0
    for p in range(P):
        l = load_uint64(low + at + 64 * p) ^ load_uint64(query + 8 * p)
        share = 0
        for plane in range(1, weights + 1):
            share = 2 * share + count_bits(l & load_uint64(query + 8 * (plane * P + p)))
        total += share
    return total


@inlined
def visible_tokens(length, L, l):
    """How many tokens query l of the last L sees."""
    return max(length - (L - 1 - l), 0)


@kernel
def _score(
    query, planes, plane_stride, plane_stride_b, plane_stride_h, lengths,
    B, H, H_kv, L, S, P, weights, distances, tile_at,
):  # fmt: skip
    blocks = (S + BLOCK * TILE - 1) // (BLOCK * TILE)
    for i in prange(B * H_kv * blocks):
        item = np.int64(i)  # prange counts in uint64; mixed with int64 that would become float64
        scratch = np.empty(BLOCK * TILE, np.uint16)
        prepared = np.empty(query_bytes(P, weights) + LINE, np.uint8)
        head, block = divmod(item, blocks)
        b, h = divmod(head, H_kv)
        rows = H // H_kv * L
        high = planes + b * plane_stride_b + h * plane_stride_h + block * BLOCK * TILE * 8 * P
        _score_block(
            high, high + plane_stride, query, rows * head, rows, L, P, weights,
            load_int64(lengths + 8 * b), S, block * BLOCK * TILE, distances, tile_at,
            scratch, prepared,
        )  # fmt: skip


@part
def _score_block(
    high, low, words, first_row, rows, L, P, weights, length, S, first, distances, tile_at,
    scratch, prepared,
):  # fmt: skip
    """Tokens first .. first + 64 BLOCK of one KV head, for each of its query rows."""
    row_bytes = 8 * P * max(weights + 1, 2)
    count = min(BLOCK * TILE, S - first)
    tiles = (min(count, max(length - first, 0)) + TILE - 1) // TILE
    query = aligned(prepared)
    for row in range(first_row, first_row + rows):
        for i in range(row_bytes // 8):
            word = load_uint64(words + row_bytes * row + 8 * i)
            store_uint64(query + table_bytes(P, weights) + 8 * i, word)
        add_tables(query, P, weights)
        for tile in range(tiles):
            at = 8 * TILE * P * tile
            target = scratch.ctypes.data + 2 * TILE * tile
            invoke(tile_at, (high + at, low + at, query, 1, P, weights, 2, target, 0))
        seen = min(visible_tokens(length, L, row % L) - first, count)
        target = distances + 2 * (row * S + first)
        for i in range(count):
            store_uint16(target + 2 * i, scratch[i] if i < seen else np.uint16(INVISIBLE))
