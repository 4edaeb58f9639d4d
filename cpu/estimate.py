"""The search by estimated inner products, which centered codes and groups rank tokens by.

An estimate is made of a distance, so that codes are scored as everywhere else, and ranked by 32
bits in place of 16. What differs from the search by distances begins behind the scores.
"""

from __future__ import annotations

import numpy as np
from numba.np.numpy_support import carray

from adamas_core.reference.center import SCALE_LEAST, SCALE_SHIFT
from adamas_core.reference.quantize import TILE

from ._array import LANES
from ._jit import inlined, invoke, opaque, part
from ._rows import (
    BOUND,
    CHUNK,
    COUNT,
    END,
    FACTS,
    FIELDS,
    FIRST,
    PLACES,
    ROWS,
    begin_row,
    candidates_of,
    forced_of,
    keep_by_products,
    layout_of,
    length_of,
    locate,
    part_of,
    prepare,
    store_indices,
)
from ._simd import (
    count_bits,
    float_of_bits,
    highest_bit,
    larger_number,
    largest_of,
    load_float32,
    load_int32,
    load_int64,
    load_scalar_float32,
    load_scales,
    load_uint8,
    load_uint16_as_float,
    load_uint32,
    load_uint64,
    mask_ranks_at_most,
    pointer,
    store_int32,
    store_int64,
    store_ranks,
    store_scalar_float32,
    store_uint32,
    sum_of,
    to_all,
)
from ._step import step_at
from .center import load_mean
from .hadamard import scratch_floats
from .rerank import keep_best
from .score import low_distance, query_bytes, table_bytes
from .topk import those_between

# What an estimate needs of a query, where it stands: two float32, and of a head of a group the
# inverse of its weights' sum (float32) and its best level (int64).
TOTAL, UNIT, INVERSE, BEST = 0, 4, 8, 16

ANY_RANK = 0xFFFFFFFE  # no rank is above it


@part
def _read_back(step, words, x, facts):
    """3 W, with W the sum of a query's weights, and m / (2 wmax), which its products are in."""
    total = 0
    for plane in range(1, step.weights + 1):
        total *= 2
        for p in range(step.P):
            total += count_bits(load_uint64(words + 8 * (plane * step.P + p)))
    top = to_all(np.float32(0))
    for d in range(0, step.Dt, LANES):
        top = larger_number(top, abs(load_float32(x + 4 * d)))
    store_scalar_float32(facts + TOTAL, np.float32(3 * total))
    unit = largest_of(top) / np.float32(2 * ((1 << step.weights) - 1))
    store_scalar_float32(facts + UNIT, unit)


@inlined
def on_mean(x, mean, Dt):
    """A transformed query times the mean of a tile, in the order of the reference's lane_sums."""
    sums = to_all(np.float32(0))
    for d in range(0, Dt, LANES):
        sums += load_float32(x + 4 * d) * load_mean(mean + 2 * d, Dt - d)
    return sum_of(sums)


@inlined
def append_tile(tile_ranks, token, start, end, bound, tokens, ranks, count, room, places):
    """Append those of a tile's tokens whose rank is <= bound, newest first.

    Only tokens start .. end; `token` is the tile's first one. Returns their number and the bound,
    as topk.py's append_newest does.
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
def collect_estimated(address, head, split, scratch):
    """Candidates for the rows of one KV head of centered codes from one part of its tokens."""
    step = step_at(address)
    layout = layout_of(step)
    b, h = divmod(head, step.H_kv)
    rows = step.H // step.H_kv * step.L
    start, end = part_of(step, b, split)
    for first_row in range(0, rows, ROWS):
        count = min(ROWS, rows - first_row)
        for i in range(count):
            prepare_estimates(step, layout, scratch, rows * head + first_row + i, i)
        _search_rows(step, layout, scratch, b, h, rows * head + first_row, split, count, start, end)
    return 0


@inlined
def prepare_estimates(step, layout, scratch, row, i):
    """A query's words, its transform, and what estimates need of it."""
    query = scratch + layout.queries + i * query_bytes(step.P, step.weights)
    x = scratch + layout.x + 4 * scratch_floats(step.Dt) * i
    prepare(step, row, query, x)
    words = query + table_bytes(step.P, step.weights)
    _read_back(step, words, x, scratch + layout.facts + FACTS * i)


@inlined
def _search_rows(step, layout, scratch, b, h, first_row, split, rows, start, end):
    """The nearest of tokens start .. end to each of some rows of a head, newest first."""
    P = step.P
    high = step.planes + b * step.planes_b + h * step.planes_h
    means = step.means + b * step.means_b + h * step.means_h
    scales = step.scales + b * step.scales_b + h * step.scales_h
    planes = 1 if step.taken > 0 else 2
    x_bytes, gap = 4 * scratch_floats(step.Dt), 2 * CHUNK
    distances, on_means = scratch + layout.distances, scratch + layout.on_means
    state = carray(pointer(scratch + layout.state), (rows, FIELDS), np.int64)
    for i in range(rows):
        begin_row(step, state[i], first_row + i, length_of(step, b), start, end, ANY_RANK)
    last_chunk = start + (end - 1 - start) // CHUNK * CHUNK
    for chunk in range(last_chunk, start - 1, -CHUNK):
        chunk_end = min(chunk + CHUNK, end)
        for tile in range(chunk, chunk_end, TILE):
            at, j = 8 * P * tile, (tile - chunk) // TILE
            invoke(
                step.score_tile,
                (
                    *(high + at, high + at + step.plane, scratch + layout.queries, rows, P),
                    *(step.weights, planes, distances + 2 * (tile - chunk), gap),
                ),
            )
            for i in range(rows):
                mean = means + 2 * step.Dt * (tile // TILE)
                product = on_mean(scratch + layout.x + x_bytes * i, mean, step.Dt)
                store_scalar_float32(on_means + 4 * (i * (CHUNK // TILE) + j), product)
        for i in range(rows):
            first, stop = max(state[i, FIRST], chunk), min(state[i, END], chunk_end)
            if state[i, PLACES] <= 0 or first >= stop:
                continue
            state[i, COUNT], state[i, BOUND] = _append_chunk(
                step, layout, scratch, i, chunk, first, stop, scales,
                planes, state[i, COUNT], state[i, BOUND], state[i, PLACES],
            )  # fmt: skip
    for i in range(rows):
        store_candidates(
            step, first_row + i, split, state[i, COUNT], state[i, PLACES],
            scratch + layout.near + 4 * step.room * i,
            scratch + layout.near_ranks + 4 * step.room * i,
        )  # fmt: skip


@inlined
def _append_chunk(
    step, layout, scratch, i, chunk, first, stop, scales, planes, count, bound, places
):
    """Candidates of row i among the tokens first .. stop of a chunk that has been scored."""
    distances = scratch + layout.distances + 2 * CHUNK * i
    on_means = scratch + layout.on_means + 4 * (CHUNK // TILE) * i
    near = scratch + layout.near + 4 * step.room * i
    near_ranks = scratch + layout.near_ranks + 4 * step.room * i
    facts, ranks = scratch + layout.facts + FACTS * i, scratch + layout.tile_ranks
    for tile in range((stop - 1) // TILE * TILE, first // TILE * TILE - 1, -TILE):
        if bound < 0:
            break
        j = (tile - chunk) // TILE
        mean = load_scalar_float32(on_means + 4 * j)
        rank_tile(distances + 2 * TILE * j, planes, scales + tile, facts, mean, ranks)
        count, bound = append_tile(
            ranks, tile, first, stop, bound, near, near_ranks, count, step.room, places
        )
    return count, bound


@inlined
def rank_tile(distances, planes, scales, facts, mean, ranks):
    """The ranks of a tile's 64 tokens, from what score_tile gave of one plane or of both."""
    total, unit = load_scalar_float32(facts + TOTAL), load_scalar_float32(facts + UNIT)
    for i in range(0, TILE, LANES):
        n = doubled(distances + 2 * i, planes, total)
        x = n * load_scales(scales + i) * to_all(unit) + to_all(mean)
        store_ranks(ranks + 4 * i, x)


@inlined
def doubled(distances, planes, total):
    """3 W - 2 d of sixteen tokens, exact as it is below 2^18.

    Of the high plane alone score_tile gives a third of d: W over the coordinates that point away.
    """
    twice = np.float32(6) if planes == 1 else np.float32(2)
    return to_all(total) - to_all(twice) * load_uint16_as_float(distances)


@inlined
def store_candidates(step, row, split, count, places, near, near_ranks):
    """What a part of the tokens gives for a row, where `choose_estimated` finds it."""
    count, _ = keep_best(near, near_ranks, count, places)
    to = row * step.held + split * candidates_of(step)
    for j in range(count):
        store_int32(step.candidates + 4 * (to + j), load_int32(near + 4 * j))
        store_uint32(step.ranks + 4 * (to + j), load_uint32(near_ranks + 4 * j))
    store_int64(step.counts + 8 * (row * step.splits + split), np.int64(count))


@opaque
def choose_estimated(address, start, end, scratch):
    """The indices of rows start .. end from the candidates of all parts.

    In a group the first head's rows have the candidates of all, and one thread has all rows.
    """
    step = step_at(address)
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
            _choose(step, layout, scratch, row)
    return 0


@inlined
def _choose(step, layout, scratch, row):
    visible, forced, taken = forced_of(step, row)
    own = step.candidates + 4 * step.held * row
    ranks = step.ranks + 4 * step.held * row
    counts = step.counts + 8 * step.splits * row
    count = load_int64(counts)
    for split in range(1, step.splits):
        for i in range(load_int64(counts + 8 * split)):
            at = candidates_of(step) * split + i
            store_int32(own + 4 * count, load_int32(own + 4 * at))
            store_uint32(ranks + 4 * count, load_uint32(ranks + 4 * at))
            count += 1
    if step.taken > 0:
        count = keep_best(own, ranks, count, step.taken - taken)[0]
        prepare_estimates(step, layout, scratch, row, 0)
        _rank_by_both_planes(step, layout, scratch, row, own, ranks, count)
    if step.kept > 0:
        count = keep_best(own, ranks, count, step.kept - taken)[0]
        places = step.budget - taken
        count = keep_by_products(step, row, own, count, places, scratch + layout.products)
    else:
        count = keep_best(own, ranks, count, step.budget - taken)[0]
    store_indices(step, row, visible, forced, own, count)


@inlined
def _rank_by_both_planes(step, layout, scratch, row, tokens, ranks, count):
    """The ranks of candidates, whose query is the first of the prepared ones."""
    b, h, _, _ = locate(step, row)
    P, weights = step.P, step.weights
    high = step.planes + b * step.planes_b + h * step.planes_h
    means = step.means + b * step.means_b + h * step.means_h
    scales = step.scales + b * step.scales_b + h * step.scales_h
    facts = scratch + layout.facts
    words = scratch + layout.queries + table_bytes(P, weights)
    for i in range(count):
        token = load_int32(tokens + 4 * i)
        distance = 2 * low_distance(high, words, P, weights, token)
        distance += low_distance(high + step.plane, words, P, weights, token)
        n = load_scalar_float32(facts + TOTAL) - np.float32(2 * distance)
        mean = on_mean(scratch + layout.x, means + 2 * step.Dt * (token // TILE), step.Dt)
        # Sixteen alike, so that this is the same arithmetic as that of a tile.
        x = to_all(n) * to_all(scale_of(load_uint8(scales + token)))
        x = x * to_all(load_scalar_float32(facts + UNIT)) + to_all(mean)
        store_ranks(scratch + layout.tile_ranks, x)
        store_uint32(ranks + 4 * i, load_uint32(scratch + layout.tile_ranks))


@inlined
def scale_of(byte):
    """The scale that a byte stands for."""
    return float_of_bits((np.int64(byte) + SCALE_LEAST) << SCALE_SHIFT)
