"""The search by distances: the nearest tokens of plain codes."""

from __future__ import annotations

import numpy as np
from numba.np.numpy_support import carray

from adamas_core.reference.layout import INVISIBLE, TILE

from ._jit import inlined, invoke, opaque
from ._memory import step_at
from ._queries import (
    begin_row,
    common_tiles,
    forced_of,
    keep_by_products,
    part_of,
    prepare,
    store_indices,
)
from ._scratch import (
    BOUND,
    CHUNK,
    COUNT,
    END,
    FIRST,
    PLACES,
    ROWS,
    STATE_FIELDS,
    layout_of,
    sought,
)
from ._simd import (
    load_int32,
    load_int64,
    load_uint16,
    pointer,
    store_int32,
    store_int64,
    store_uint16,
)
from .score import query_bytes
from .topk import append_newest, keep_nearest, kth_smallest, move_candidate

SAMPLE = 16 * TILE  # tokens that give the first bound


@opaque
def collect(at, head, split, scratch):
    """Candidates for the rows of one KV head from one part of its tokens."""
    step = step_at(at)
    layout = layout_of(step)
    part = part_of(step, head, split)
    rows = step.H // step.H_kv * step.L
    for first_row in range(0, rows, ROWS):
        count = min(ROWS, rows - first_row)
        for i in range(count):
            query = scratch + layout.queries + i * query_bytes(step.P, step.weights)
            prepare(step, rows * head + first_row + i, query, scratch + layout.x)
        _search_rows(step, layout, scratch, part, rows * head + first_row, count)
    return 0


@inlined
def _search_rows(step, layout, scratch, part, first_row, rows):
    """The nearest tokens of a part to each of some rows of a head, newest first.

    Chunks come newest first, so that of equal distances the first one found wins. Tokens in a chunk
    are scored in ascending order, which suits the prefetchers. A sample gives the first bound, or
    the distances of the only chunk. After that the candidates themselves give it.
    """
    P, weights, room = step.P, step.weights, step.part_room
    start, end = part.start, part.end
    high = step.planes + part.b * step.planes_b + part.h * step.planes_h
    low = high + step.to_low
    largest = min(64 * P * 3 * ((1 << weights) - 1 if weights > 0 else 1), INVISIBLE - 1)
    stride = 2 * CHUNK
    queries, distances = scratch + layout.queries, scratch + layout.distances
    state = carray(pointer(scratch + layout.state), (rows, STATE_FIELDS), np.int64)
    for i in range(rows):
        begin_row(step, state[i], first_row + i, part, largest)
    sampled = _sample(step, high, queries, distances, part, state)
    last_chunk = start + (end - 1 - start) // CHUNK * CHUNK
    for chunk in range(last_chunk, start - 1, -CHUNK):
        chunk_end = min(chunk + CHUNK, end)
        for tile in range(chunk, chunk_end, TILE):
            at = 8 * P * tile
            target = distances + 2 * (tile - chunk)
            invoke(
                step.score_tile, (high + at, low + at, queries, rows, P, weights, target, stride)
            )
        for i in range(rows):
            first, stop = max(state[i, FIRST], chunk), min(state[i, END], chunk_end)
            places = state[i, PLACES]
            if places <= 0 or first >= stop:
                continue
            row = distances + stride * i
            if not sampled and end - start <= CHUNK and stop - first > places:
                at = row + 2 * (first - chunk)
                state[i, BOUND] = kth_smallest(at, stop - first, places, state[i, BOUND])
            state[i, COUNT], state[i, BOUND] = append_newest(
                row, first, stop, state[i, BOUND], chunk,
                scratch + layout.near + 4 * room * i, scratch + layout.near_ranks + 2 * room * i,
                state[i, COUNT], room, places,
            )  # fmt: skip
    for i in range(rows):
        near = scratch + layout.near + 4 * room * i
        near_ranks = scratch + layout.near_ranks + 2 * room * i
        count = _reduce(near, near_ranks, state[i, COUNT], state[i, PLACES])
        to = (first_row + i) * step.row_room + part.split * sought(step)
        for j in range(count):
            store_int32(step.candidates + 4 * (to + j), load_int32(near + 4 * j))
            store_uint16(step.ranks + 2 * (to + j), load_uint16(near_ranks + 2 * j))
        counts = step.counts + 8 * ((first_row + i) * step.splits + part.split)
        store_int64(counts, np.int64(count))


@inlined
def _sample(step, high, queries, distances, part, state):
    """Bound each row by a sample of tiles, if there are enough tokens; returns whether it did.

    The sample is spread over the tokens that compete for all rows.
    """
    rows, P, stride = len(state), step.P, 2 * CHUNK
    first_tile, end_tile, places = common_tiles(part, state)
    tiles = min(max(SAMPLE, 8 * places), CHUNK) // TILE
    if places <= 0 or tiles * TILE < 2 * places or end_tile - first_tile < 4 * tiles:
        return False
    for j in range(tiles):
        words = high + 8 * P * TILE * (first_tile + j * (end_tile - first_tile) // tiles)
        target = distances + 2 * TILE * j
        invoke(
            step.score_tile,
            (words, words + step.to_low, queries, rows, P, step.weights, target, stride),
        )
    for i in range(rows):
        if state[i, PLACES] > 0:
            state[i, BOUND] = kth_smallest(
                distances + stride * i, tiles * TILE, state[i, PLACES], state[i, BOUND]
            )
    return True


@opaque
def choose(at, start, end, scratch):
    """The indices of rows start .. end from the candidates of all parts."""
    step = step_at(at)
    layout = layout_of(step)
    for row in range(start, end):
        visible, forced, forced_count = forced_of(step, row)
        own = step.candidates + 4 * step.row_room * row
        ranks = step.ranks + 2 * step.row_room * row
        counts = step.counts + 8 * step.splits * row
        count = load_int64(counts)
        for split in range(1, step.splits):
            for i in range(load_int64(counts + 8 * split)):
                move_candidate(own, ranks, sought(step) * split + i, count)
                count += 1
        places = step.budget - forced_count
        if step.refined > 0:
            count = _reduce(own, ranks, count, step.refined - forced_count)
            count = keep_by_products(step, row, own, count, places, scratch + layout.products)
        else:
            count = _reduce(own, ranks, count, places)
        store_indices(step, row, visible, forced, own, count)
    return 0


@inlined
def _reduce(candidates, ranks, count, places):
    """Keep the nearest candidates; returns how many are left."""
    if count > places:
        keep_nearest(candidates, ranks, count, places, INVISIBLE - 1)
        return places
    return count
