"""Distances between queries and coded keys."""

from __future__ import annotations

import numpy as np
from numba import prange
from numpy.typing import NDArray

from adamas_core.reference.quantize import TILE
from adamas_core.reference.score import INVISIBLE

from ._array import address
from ._jit import inlined, kernel, part
from ._simd import (
    load_int64,
    load_word_to_all,
    load_words,
    popcount,
    store_as_uint16,
    store_uint16,
    zero_words,
)

BLOCK = 8  # tiles a thread scores for every query head in turn; 16 KiB of codes at D = 128


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
            *(B, H, H_kv, L, S, P, weights, address(distances)),
        )
    return distances


@inlined
def manhattan_tiles(high, low, query, P, tiles, distances):
    """Distances of 64 * tiles tokens to a query's codes, by popcounts of bit planes.

    |c - e| for 2-bit codes: s marks an odd difference and d a difference of two or more.
    """
    for group in range(8 * tiles):
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
def weighted_tiles(high, low, query, P, weights, tiles, distances):
    """The same for a query of a sign plane and `weights` planes, most significant first.

    At most 21 Dt <= 43008 with three weight planes, and 127 * 3 * Dt with seven: the words hold it,
    and the low 16 bits are what the specification's uint16 keeps.
    """
    for group in range(8 * tiles):
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


@part
def score_tiles(high, low, query, P, weights, tiles, distances):
    """Distances of whole tiles into distances (uint16); weights = 0 is the Manhattan metric.

    Constant P and weights unroll the inner loops and keep the query in registers.
    """
    if weights == 0:
        if P == 1:
            manhattan_tiles(high, low, query, 1, tiles, distances)
        elif P == 2:
            manhattan_tiles(high, low, query, 2, tiles, distances)
        elif P == 4:
            manhattan_tiles(high, low, query, 4, tiles, distances)
        else:
            manhattan_tiles(high, low, query, P, tiles, distances)
    elif weights == 3 and P == 1:
        weighted_tiles(high, low, query, 1, 3, tiles, distances)
    elif weights == 3 and P == 2:
        weighted_tiles(high, low, query, 2, 3, tiles, distances)
    elif weights == 3 and P == 4:
        weighted_tiles(high, low, query, 4, 3, tiles, distances)
    elif weights == 2 and P == 1:
        weighted_tiles(high, low, query, 1, 2, tiles, distances)
    elif weights == 2 and P == 2:
        weighted_tiles(high, low, query, 2, 2, tiles, distances)
    elif weights == 2 and P == 4:
        weighted_tiles(high, low, query, 4, 2, tiles, distances)
    else:
        weighted_tiles(high, low, query, P, weights, tiles, distances)


@inlined
def visible_tokens(length, L, l):
    """How many tokens query l of the last L sees."""
    return max(length - (L - 1 - l), 0)


@kernel
def _score(
    query, planes, plane_stride, plane_stride_b, plane_stride_h, lengths,
    B, H, H_kv, L, S, P, weights, distances,
):  # fmt: skip
    blocks = (S + BLOCK * TILE - 1) // (BLOCK * TILE)
    for item in prange(B * H_kv * blocks):
        scratch = np.empty(BLOCK * TILE, np.uint16)
        head, block = divmod(item, blocks)
        b, h = divmod(head, H_kv)
        high = planes + b * plane_stride_b + h * plane_stride_h + block * BLOCK * TILE * 8 * P
        rows = H // H_kv * L
        _score_block(
            high, high + plane_stride, query, rows * head, rows, L, P, weights,
            load_int64(lengths + 8 * b), S, block * BLOCK * TILE, distances, scratch,
        )  # fmt: skip


@part
def _score_block(
    high, low, query, first_row, rows, L, P, weights, length, S, first, distances, scratch
):
    """Tokens first .. first + 64 BLOCK of one KV head, for each of its query rows."""
    query_bytes = 8 * P * max(weights + 1, 2)
    count = min(BLOCK * TILE, S - first)
    tiles = (min(count, max(length - first, 0)) + TILE - 1) // TILE
    for row in range(first_row, first_row + rows):
        score_tiles(high, low, query + query_bytes * row, P, weights, tiles, scratch.ctypes.data)
        seen = min(visible_tokens(length, L, row % L) - first, count)
        target = distances + 2 * (row * S + first)
        for i in range(count):
            store_uint16(target + 2 * i, scratch[i] if i < seen else np.uint16(INVISIBLE))
