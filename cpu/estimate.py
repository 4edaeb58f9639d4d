"""The search by estimated inner products, for centered codes.

Estimates are made from distances. So codes are scored as in the search by distances, and then
ranked by 32 bits instead of 16.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba.core import types
from numba.np.numpy_support import carray

from adamas_core.reference.layout import TILE

from ._float_rows import LANES
from ._jit import inlined, invoke, opaque, outlined
from ._queries import begin_row, forced_of, keep_by_products, part_of, prepare, store_indices
from ._scratch import (
    BOUND,
    CHUNK,
    COUNT,
    END,
    FIRST,
    PLACES,
    ROWS,
    STATE_FIELDS,
    TERMS_BYTES,
    TOTAL,
    UNIT,
    layout_of,
    sought,
)
from ._simd import (
    F32x16,
    I16x16,
    I32x16,
    constant,
    count_bits,
    highest_bit,
    larger_number,
    largest_of,
    load,
    load_float32,
    load_int32,
    load_int64,
    load_scalar_float32,
    load_uint32,
    load_uint64,
    operation,
    pointer,
    store,
    store_int32,
    store_int64,
    store_scalar_float32,
    store_uint32,
    sum_of,
    to_all,
)
from ._step import step_at
from .center import load_mean, load_scales
from .hadamard import scratch_floats
from .rerank import LAST_RANK, keep_best, mask_ranks_at_most
from .score import query_bytes, table_bytes
from .topk import those_between

ANY_RANK = LAST_RANK - 1  # no rank is above it


# ---- queries and tiles -------------------------------------------------------------------------


@operation(F32x16, types.int64)
def load_uint16_as_float(builder: Any, address: Any) -> Any:
    return builder.uitofp(load(builder, address, I16x16), F32x16.ir)


@operation(types.void, types.int64, F32x16)
def store_ranks(builder: Any, address: Any, x: Any) -> None:
    """Sixteen ranks (uint32) of estimates, as `rank` of the reference.

    NaN counts as minus infinity, and -0 as 0.
    """
    x = builder.select(builder.fcmp_unordered("uno", x, x), constant(x.type, float("-inf")), x)
    word = builder.bitcast(builder.fadd(x, constant(x.type, 0.0)), I32x16)
    negative = builder.icmp_signed("<", word, constant(I32x16, 0))
    upside_down = builder.xor(word, constant(I32x16, 0x7FFFFFFF))
    store(builder, address, builder.select(negative, word, upside_down))


@inlined
def prepare_estimates(step, layout, scratch, row, i):
    """The words, the transform and the terms of a query, which is the i-th in the scratch."""
    query = scratch + layout.queries + i * query_bytes(step.P, step.weights)
    x = scratch + layout.x + 4 * scratch_floats(step.Dt) * i
    prepare(step, row, query, x)
    words = query + table_bytes(step.P, step.weights)
    _store_terms(step, words, x, scratch + layout.terms + TERMS_BYTES * i)


@outlined
def _store_terms(step, words, x, terms):
    """3 W and m / (2 wmax): W is the sum of the query's weights, and m its largest |x|."""
    total = 0
    for plane in range(1, step.weights + 1):
        total *= 2
        for p in range(step.P):
            total += count_bits(load_uint64(words + 8 * (plane * step.P + p)))
    top = to_all(np.float32(0))
    for d in range(0, step.Dt, LANES):
        top = larger_number(top, abs(load_float32(x + 4 * d)))
    store_scalar_float32(terms + TOTAL, np.float32(3 * total))
    unit = largest_of(top) / np.float32(2 * ((1 << step.weights) - 1))
    store_scalar_float32(terms + UNIT, unit)


@inlined
def on_mean(x, mean, Dt):
    """A transformed query times the mean of a tile, in the order of the reference's lane_sums."""
    sums = to_all(np.float32(0))
    for d in range(0, Dt, LANES):
        sums += load_float32(x + 4 * d) * load_mean(mean + 2 * d, Dt - d)
    return sum_of(sums)


@inlined
def doubled(distances, total):
    """3 W - 2 d of sixteen tokens. It is exact, as it is below 2^18."""
    return to_all(total) - to_all(np.float32(2)) * load_uint16_as_float(distances)


@inlined
def _rank_tile(distances, scales, terms, mean, ranks):
    """The ranks of a tile's 64 tokens, from their distances."""
    total, unit = load_scalar_float32(terms + TOTAL), load_scalar_float32(terms + UNIT)
    for i in range(0, TILE, LANES):
        n = doubled(distances + 2 * i, total)
        x = n * load_scales(scales + i) * to_all(unit) + to_all(mean)
        store_ranks(ranks + 4 * i, x)


# ---- candidates of a part ----------------------------------------------------------------------


@inlined
def append_tile(tile_ranks, token, start, end, bound, tokens, ranks, count, room, places):
    """Append the tokens of a tile whose rank is <= bound, newest first.

    `token` is the tile's first token. Only tokens start .. end are appended. Returns the number of
    candidates and the bound, as append_newest of topk.py does.
    """
    mask = those_between(mask_ranks_at_most(tile_ranks, bound), token, start, end)
    while mask:
        bit = highest_bit(mask)
        mask ^= np.uint64(1) << np.uint64(bit)
        store_int32(tokens + 4 * count, np.int32(token + bit))
        store_uint32(ranks + 4 * count, load_uint32(tile_ranks + 4 * bit))
        count += 1
    if count > room - TILE:
        count, kth = keep_best(tokens, ranks, count, places)
        bound = kth - 1
    return count, bound


@opaque
def collect_estimated(at, head, split, scratch):
    """Candidates for the rows of one KV head of centered codes from one part of its tokens."""
    step = step_at(at)
    layout = layout_of(step)
    part = part_of(step, head, split)
    rows = step.H // step.H_kv * step.L
    for first_row in range(0, rows, ROWS):
        count = min(ROWS, rows - first_row)
        for i in range(count):
            prepare_estimates(step, layout, scratch, rows * head + first_row + i, i)
        _search_rows(step, layout, scratch, part, rows * head + first_row, count)
    return 0


@inlined
def _search_rows(step, layout, scratch, part, first_row, rows):
    """The nearest tokens of a part to each of some rows of a head, newest first."""
    P, Dt, start, end = step.P, step.Dt, part.start, part.end
    high = step.planes + part.b * step.planes_b + part.h * step.planes_h
    means = step.means + part.b * step.means_b + part.h * step.means_h
    scales = step.scales + part.b * step.scales_b + part.h * step.scales_h
    x_bytes, stride = 4 * scratch_floats(Dt), 2 * CHUNK
    distances, on_means = scratch + layout.distances, scratch + layout.on_means
    state = carray(pointer(scratch + layout.state), (rows, STATE_FIELDS), np.int64)
    for i in range(rows):
        begin_row(step, state[i], first_row + i, part, ANY_RANK)
    last_chunk = start + (end - 1 - start) // CHUNK * CHUNK
    for chunk in range(last_chunk, start - 1, -CHUNK):
        chunk_end = min(chunk + CHUNK, end)
        for tile in range(chunk, chunk_end, TILE):
            words, j = high + 8 * P * tile, (tile - chunk) // TILE
            invoke(
                step.score_tile,
                (
                    *(words, words + step.to_low, scratch + layout.queries, rows, P, step.weights),
                    *(distances + 2 * (tile - chunk), stride),
                ),
            )
            for i in range(rows):
                mean = means + 2 * Dt * (tile // TILE)
                product = on_mean(scratch + layout.x + x_bytes * i, mean, Dt)
                store_scalar_float32(on_means + 4 * (i * (CHUNK // TILE) + j), product)
        for i in range(rows):
            first, stop = max(state[i, FIRST], chunk), min(state[i, END], chunk_end)
            if state[i, PLACES] > 0 and first < stop:
                _append_chunk(step, layout, scratch, i, chunk, first, stop, scales, state[i])
    for i in range(rows):
        near = scratch + layout.near + 4 * step.part_room * i
        near_ranks = scratch + layout.near_ranks + 4 * step.part_room * i
        count, _ = keep_best(near, near_ranks, state[i, COUNT], state[i, PLACES])
        store_candidates(step, first_row + i, part.split, near, near_ranks, count)


@inlined
def _append_chunk(step, layout, scratch, i, chunk, first, stop, scales, state):
    """Candidates of row i among the tokens first .. stop of a chunk that has been scored."""
    distances = scratch + layout.distances + 2 * CHUNK * i
    on_means = scratch + layout.on_means + 4 * (CHUNK // TILE) * i
    near = scratch + layout.near + 4 * step.part_room * i
    near_ranks = scratch + layout.near_ranks + 4 * step.part_room * i
    terms, ranks = scratch + layout.terms + TERMS_BYTES * i, scratch + layout.tile_ranks
    room, places, count, bound = step.part_room, state[PLACES], state[COUNT], state[BOUND]
    for tile in range((stop - 1) // TILE * TILE, first // TILE * TILE - 1, -TILE):
        if bound < 0:
            break
        j = (tile - chunk) // TILE
        mean = load_scalar_float32(on_means + 4 * j)
        _rank_tile(distances + 2 * TILE * j, scales + tile, terms, mean, ranks)
        count, bound = append_tile(
            ranks, tile, first, stop, bound, near, near_ranks, count, room, places
        )
    state[COUNT], state[BOUND] = count, bound


@inlined
def store_candidates(step, row, split, near, near_ranks, count):
    """Store the candidates of a row from one part where `choose_estimated` finds them."""
    to = row * step.row_room + split * sought(step)
    for j in range(count):
        store_int32(step.candidates + 4 * (to + j), load_int32(near + 4 * j))
        store_uint32(step.ranks + 4 * (to + j), load_uint32(near_ranks + 4 * j))
    store_int64(step.counts + 8 * (row * step.splits + split), np.int64(count))


# ---- choice from the candidates of all parts ---------------------------------------------------


@opaque
def choose_estimated(at, start, end, scratch):
    """The indices of rows start .. end from the candidates of all parts.

    In a group the rows of the first head have the candidates of all, and one thread has all rows.
    """
    step = step_at(at)
    layout = layout_of(step)
    budget = step.budget
    heads = step.H // step.H_kv
    for row in range(start, end):
        indices = step.indices + 4 * budget * row
        leader = row - row // step.L % heads * step.L
        if step.group != 0 and leader != row:
            for i in range(budget):
                store_int32(indices + 4 * i, load_int32(step.indices + 4 * (budget * leader + i)))
        else:
            _choose_row(step, layout, scratch, row)
    return 0


@inlined
def _choose_row(step, layout, scratch, row):
    visible, forced, forced_count = forced_of(step, row)
    own = step.candidates + 4 * step.row_room * row
    ranks = step.ranks + 4 * step.row_room * row
    counts = step.counts + 8 * step.splits * row
    count = load_int64(counts)
    for split in range(1, step.splits):
        for i in range(load_int64(counts + 8 * split)):
            at = sought(step) * split + i
            store_int32(own + 4 * count, load_int32(own + 4 * at))
            store_uint32(ranks + 4 * count, load_uint32(ranks + 4 * at))
            count += 1
    places = step.budget - forced_count
    if step.refined > 0:
        count = keep_best(own, ranks, count, step.refined - forced_count)[0]
        count = keep_by_products(step, row, own, count, places, scratch + layout.products)
    else:
        count = keep_best(own, ranks, count, places)[0]
    store_indices(step, row, visible, forced, own, count)
