"""Distances between queries and coded keys."""

from __future__ import annotations

import numpy as np

from adamas_core.reference.layout import INVISIBLE, TILE

from .._array import LINE
from .._records import Score
from ._jit import inlined, invoke, opaque, outlined
from ._lookup import (
    TABLE_BYTES,
    look_up_tile1,
    look_up_tile2,
    look_up_tile4,
    store_tables,
    usable,
)
from ._memory import loop_at, reader
from ._popcount import manhattan_tile, weighted_tile
from ._simd import load_int64, load_uint16, load_uint64, store_uint16, store_uint64
from ._visible import visible_tokens

BLOCK_TILES = 32  # scored for each query head in turn by a thread: 64 KiB of codes at D = 128

score_at = reader(Score)


# ---- prepared queries: tables, if look-ups are used, and then words ----------------------------


@inlined
def table_bytes(P, weights):
    """Bytes of a prepared query's tables. Its words follow them."""
    return TABLE_BYTES * P if usable(P, weights) else 0


@inlined
def query_bytes(P, weights):
    """Bytes of a prepared query: whole lines, so that all tables stand on lines."""
    return (table_bytes(P, weights) + 8 * P * max(weights + 1, 2) + LINE - 1) // LINE * LINE


@inlined
def add_tables(query, P, weights):
    """Complete a prepared query whose words have been written."""
    if usable(P, weights):
        store_tables(query + table_bytes(P, weights), P, weights, query)


@opaque
def score_tile(high, low, queries, rows, P, weights, distances, stride):
    """Distances (uint16) of a tile to `rows` prepared queries; `stride` bytes per query.

    weights = 0 is the Manhattan metric. Constant P and weights unroll the inner loops and keep the
    query in registers.
    """
    own = query_bytes(P, weights)
    if usable(P, weights):
        if P == 1:
            look_up_tile1(high, low, queries, own, rows, distances, stride)
        elif P == 2:
            look_up_tile2(high, low, queries, own, rows, distances, stride)
        else:
            look_up_tile4(high, low, queries, own, rows, distances, stride)
        return 0
    for row in range(rows):
        query = queries + own * row
        target = distances + stride * row
        if weights == 0:
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


@opaque
def plan_score(at):
    loop = loop_at(at)
    record = score_at(loop.record)
    block_tokens = BLOCK_TILES * TILE
    loop.items = record.B * record.H_kv * ((record.S + block_tokens - 1) // block_tokens)
    loop.scratch = 2 * block_tokens + query_bytes(record.P, record.weights)
    return 0


@opaque
def score_block(at, item, block_distances):
    """Some tiles of one KV head, for each of its query rows."""
    record = score_at(at)
    S, L, P, weights = record.S, record.L, record.P, record.weights
    block_tokens = BLOCK_TILES * TILE
    head, block = divmod(item, (S + block_tokens - 1) // block_tokens)
    b, h = divmod(head, record.H_kv)
    rows = record.H // record.H_kv * L
    length, first = load_int64(record.lengths + 8 * b), block * block_tokens
    high = record.planes + b * record.planes_b + h * record.planes_h + 8 * P * first
    low = high + record.to_low
    row_bytes = 8 * P * max(weights + 1, 2)
    count = min(block_tokens, S - first)
    tiles = (min(count, max(length - first, 0)) + TILE - 1) // TILE
    # Loaded once: LLVM cannot know that the stores below do not change the record.
    words, distances, function = record.query, record.distances, record.score_tile
    query = block_distances + 2 * block_tokens
    for row in range(rows * head, rows * (head + 1)):
        for i in range(row_bytes // 8):
            word = load_uint64(words + row_bytes * row + 8 * i)
            store_uint64(query + table_bytes(P, weights) + 8 * i, word)
        add_tables(query, P, weights)
        for tile in range(tiles):
            keys = 8 * TILE * P * tile
            target = block_distances + 2 * TILE * tile
            invoke(function, (high + keys, low + keys, query, 1, P, weights, target, 0))
        seen = min(visible_tokens(length, L, row % L) - first, count)
        _store_row(block_distances, seen, count, distances + 2 * (row * S + first))
    return 0


@outlined
def _store_row(source, seen, count, target):
    """Copy the first `seen` of `count` distances. The others are of invisible tokens."""
    for i in range(seen):
        store_uint16(target + 2 * i, load_uint16(source + 2 * i))
    for i in range(max(seen, 0), count):
        store_uint16(target + 2 * i, np.uint16(INVISIBLE))
