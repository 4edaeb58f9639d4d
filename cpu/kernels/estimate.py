"""The search by estimated inner products, for centered codes.

Estimates are made from distances. So codes are scored as in the search by distances, and then
ranked by 32 bits instead of 16.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba.core import cgutils, types
from numba.np.numpy_support import carray

from adamas_core.reference.layout import TILE

from ._cap import cap_one
from ._float_rows import LANES
from ._jit import inlined, invoke, opaque, outlined
from ._memory import step_at
from ._queries import (
    Part,
    begin_row,
    common_tiles,
    forced_of,
    keep_by_products,
    length_of,
    locate,
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
    SAMPLE_TILES,
    STATE_FIELDS,
    TERMS_BYTES,
    TOTAL,
    UNIT,
    layout_of,
    on_means_of,
    sought,
    tests_of,
    weights_of,
)
from ._simd import (
    F32,
    I32,
    I64,
    F32x16,
    I32x16,
    call,
    constant,
    count_bits,
    highest_bit,
    join_masks,
    larger_number,
    largest_of,
    load_float32,
    load_float64,
    load_int32,
    load_int64,
    load_scalar_float32,
    load_uint16,
    load_uint16_as_float,
    load_uint32,
    load_uint64,
    operation,
    picked,
    pointer,
    prefetch,
    splat,
    store,
    store_float32,
    store_float64,
    store_int32,
    store_int64,
    store_scalar_float32,
    store_uint32,
    store_uint64,
    sum_of,
    to_all,
)
from ._weights import (
    add_and_test,
    add_tile,
    begin_sums,
    begin_weights,
    competing_for_all,
    end_sums,
    has_cap,
    mark_competing,
    set_shift,
    weigh_chunk,
)
from .center import load_mean, load_scale, load_scales
from .hadamard import scratch_floats
from .rerank import LAST_RANK, keep_best, kth_rank, mask_ranks_at_most
from .score import query_bytes, table_bytes
from .topk import those_between

ANY_RANK = LAST_RANK - 1  # no rank is above it


# ---- queries and tiles -------------------------------------------------------------------------


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


@operation(types.void, types.int64, F32x16, F32x16, F32x16, F32x16)
def store_four_sums(builder: Any, address: Any, a: Any, b: Any, c: Any, d: Any) -> None:
    """`sum_of` four vectors, one after another. Halves of two rows are added by one instruction."""
    rows = [_fold_two(builder, _fold_two(builder, a, b, 8), _fold_two(builder, c, d, 8), 4)]
    for lanes in (2, 1):
        upper = [min(i + lanes, 15) for i in range(16)]
        rows.append(builder.fadd(rows[-1], picked(builder, rows[-1], rows[-1], upper)))
    store(builder, address, picked(builder, rows[-1], rows[-1], [0, 4, 8, 12]))


def _fold_two(builder: Any, a: Any, b: Any, lanes: int) -> Any:
    """Add the upper `lanes` of each block of 2 * lanes to its lower ones, in a and in b."""
    lower = [i for i in range(32) if i % (2 * lanes) < lanes]
    upper = [i + lanes for i in lower]
    return builder.fadd(picked(builder, a, b, lower), picked(builder, a, b, upper))


@inlined
def store_on_mean(x, x_bytes, rows, mean, Dt, products):
    """`on_mean` of some transformed queries. Four at a time share the mean and the additions."""
    whole = rows // 4 * 4
    for first in range(0, whole, 4):
        at = x + x_bytes * first
        a = b = c = e = to_all(np.float32(0))
        for d in range(0, Dt, LANES):
            m = load_mean(mean + 2 * d, Dt - d)
            a += load_float32(at + 4 * d) * m
            b += load_float32(at + x_bytes + 4 * d) * m
            c += load_float32(at + 2 * x_bytes + 4 * d) * m
            e += load_float32(at + 3 * x_bytes + 4 * d) * m
        store_four_sums(products + 4 * first, a, b, c, e)
    for i in range(whole, rows):
        store_scalar_float32(products + 4 * i, on_mean(x + x_bytes * i, mean, Dt))


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


# ---- promising tokens --------------------------------------------------------------------------

FEW = 6  # up to this many tokens of a tile are ranked one by one
SLACK = 2.0**-20  # of the largest terms: sixteen times the rounding errors of an estimate


@operation(F32x16, F32x16, F32x16, F32x16)
def limits_of(builder: Any, least: Any, mean: Any, unit: Any) -> Any:
    """Limits of n s: where n s unit + mean >= least, n s is not below the limit.

    That holds for the rounded sum too. NaN in, or infinities without a sense, give NaN.
    """
    away = builder.fsub(least, mean)
    terms = _absolute(builder, least)
    for x in (mean, away):
        terms = builder.fadd(terms, _absolute(builder, x))
    slack = builder.fmul(terms, constant(F32x16.ir, SLACK))
    return builder.fdiv(builder.fsub(away, slack), unit)


@operation(types.void, *[types.int64] * 7)
def find_promising(
    builder: Any,
    distances: Any,
    stride: Any,
    scales: Any,
    halves: Any,
    limits: Any,
    rows: Any,
    masks: Any,
) -> None:
    """For some rows, which of a tile's tokens have n s / 2 >= limit; all if the limit is NaN.

    n s is exact: n is an integer below 2^18, and s has five bits. halves and limits are float32,
    and masks 64 bits, of each row. stride is in bytes, between the distances of two rows.
    """
    factors = [load_scales(builder, builder.add(scales, I64(16 * i))) for i in range(4)]
    with cgutils.for_range(builder, rows) as loop:
        four = builder.mul(loop.index, I64(4))
        half, limit = (
            splat(builder, F32x16.ir, load_scalar_float32(builder, builder.add(x, four)))
            for x in (halves, limits)
        )
        own = builder.add(distances, builder.mul(stride, loop.index))
        tests = []
        for i, factor in enumerate(factors):
            d = load_uint16_as_float(builder, builder.add(own, I64(32 * i)))
            product = builder.fmul(builder.fsub(half, d), factor)
            tests.append(builder.fcmp_unordered(">=", product, limit))
        at = builder.add(masks, builder.mul(loop.index, I64(8)))
        store_uint64(builder, at, join_masks(builder, tests))


def _absolute(builder: Any, x: Any) -> Any:
    return call(builder, "llvm.fabs.v16f32", F32x16.ir, x)


@operation(types.float32, types.int64)
def least_of(builder: Any, bound: Any) -> Any:
    """The least estimate whose rank is <= bound; NaN for some bounds that no rank reaches."""
    word = builder.trunc(bound, I32)
    upside_down = builder.xor(word, I32(0x7FFFFFFF))
    positive = builder.icmp_signed(">=", word, I32(0))
    return builder.bitcast(builder.select(positive, upside_down, word), F32)


@operation(types.uint32, types.float32)
def rank_of(builder: Any, x: Any) -> Any:
    """The rank of one estimate, as `store_ranks` has it."""
    x = builder.select(builder.fcmp_unordered("uno", x, x), F32(float("-inf")), x)
    word = builder.bitcast(builder.fadd(x, F32(0.0)), I32)
    negative = builder.icmp_signed("<", word, I32(0))
    return builder.select(negative, word, builder.xor(word, I32(0x7FFFFFFF)))


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
    """The nearest tokens of a part to each of some rows of a head, newest first.

    A sample gives bounds that most tokens are sorted out by. They are guesses: if fewer tokens than
    there are places come up to one, the search starts again without them.
    """
    state = carray(pointer(scratch + layout.state), (rows, STATE_FIELDS), np.int64)
    _begin_rows(step, layout, scratch, part, first_row, state)
    guessed = _guess_bounds(step, layout, scratch, part, state)
    known = guessed and step.tail > 0 and _shift_to_bounds(step, layout, scratch, state)
    while True:
        _search_chunks(step, layout, scratch, part, state, known)
        missing = False
        for i in range(rows):
            missing |= state[i, COUNT] < state[i, PLACES]
        if not (guessed and missing):
            break
        _begin_rows(step, layout, scratch, part, first_row, state)
        guessed = known = False
    for i in range(rows):
        near = scratch + layout.near + 4 * step.part_room * i
        near_ranks = scratch + layout.near_ranks + 4 * step.part_room * i
        count, _ = keep_best(near, near_ranks, state[i, COUNT], state[i, PLACES])
        store_candidates(step, first_row + i, part.split, near, near_ranks, count)
        if step.tail > 0:
            weights = weights_of(scratch + layout.weights)
            to = step.sums + 16 * ((first_row + i) * step.splits + part.split)
            store_float64(to, load_float64(weights.shifts + 8 * i))
            store_float64(to + 8, load_float64(weights.masses + 8 * i))


@inlined
def _shift_to_bounds(step, layout, scratch, state):
    """Let the shift of each row be the logit of its bound; returns whether all are numbers."""
    weights = weights_of(scratch + layout.weights)
    for i in range(len(state)):
        shift = step.scale * np.float64(least_of(state[i, BOUND]))
        if not (step.scale >= 0 and abs(shift) < np.inf):
            return False
        set_shift(weights, i, cap_one(shift, step.soft_cap))
    return True


@inlined
def _begin_rows(step, layout, scratch, part, first_row, state):
    """The state of rows about which nothing is known: all their tokens are promising."""
    tests = tests_of(scratch + layout.tests)
    for i in range(len(state)):
        terms = scratch + layout.terms + TERMS_BYTES * i
        begin_row(step, state[i], first_row + i, part, ANY_RANK)
        unit = load_scalar_float32(terms + UNIT)
        if not unit >= np.float32(2**-100):  # products with it would lose bits, or be no number
            unit = np.float32(np.nan)
        half = load_scalar_float32(terms + TOTAL) * np.float32(0.5)
        store_scalar_float32(tests.halves + 4 * i, half)
        for lane in (i, i + ROWS):
            store_scalar_float32(tests.units + 4 * lane, unit)
        _store_bound(tests, i, ANY_RANK)
        if step.tail > 0:
            x = scratch + layout.x + 4 * scratch_floats(step.Dt) * i
            begin_weights(step, weights_of(scratch + layout.weights), i, terms, x)


@inlined
def _store_bound(tests, i, bound):
    for lane in (i, i + ROWS):
        store_scalar_float32(tests.least + 4 * lane, least_of(bound))


@inlined
def _guess_bounds(step, layout, scratch, part, state):
    """Guess a bound for each row from some tiles of the part; returns whether it did.

    The tiles are spread over the tokens that compete for all rows. If the nearest tokens are spread
    as well, e of them are in the sample, and fewer than 2 e + 6 nearly always.
    """
    first_tile, end_tile, places = common_tiles(part, state)
    count = end_tile - first_tile
    tiles = min(max(count // 64, 16), SAMPLE_TILES)
    k = 2 * places * tiles // max(count, 1) + 6
    if places <= 0 or count < 4 * tiles or k >= TILE * tiles:
        return False
    scales = step.scales + part.b * step.scales_b + part.h * step.scales_h
    ranks = scratch + layout.ranks
    for j in range(tiles):
        tile = _sampled(first_tile, count, j, tiles)
        _score_tile(step, layout, scratch, part, tile, j, len(state))
        products = scratch + layout.on_means + 4 * ROWS * j
        _multiply_mean(step, layout, scratch, part, tile, products, len(state))
    for i in range(len(state)):
        terms = scratch + layout.terms + TERMS_BYTES * i
        for j in range(tiles):
            _rank_tile(
                scratch + layout.distances + 2 * (CHUNK * i + TILE * j),
                scales + TILE * _sampled(first_tile, count, j, tiles),
                terms,
                load_scalar_float32(scratch + layout.on_means + 4 * (ROWS * j + i)),
                ranks + 4 * TILE * j,
            )
        state[i, BOUND] = min(kth_rank(ranks, TILE * tiles, min(k, places)), ANY_RANK)
        _store_bound(tests_of(scratch + layout.tests), i, state[i, BOUND])
    return True


@inlined
def _sampled(first_tile, count, j, tiles):
    """The j-th tile of a sample: the middle of its share. The first tile often is no usual one."""
    return first_tile + (2 * j + 1) * count // (2 * tiles)


@inlined
def _search_chunks(step, layout, scratch, part, state, known):
    """Candidates of rows from all chunks of a part, newest first, and their sums of weights."""
    rows = len(state)
    scales = step.scales + part.b * step.scales_b + part.h * step.scales_h
    last_chunk = part.start + (part.end - 1 - part.start) // CHUNK * CHUNK
    for chunk in range(last_chunk, part.start - 1, -CHUNK):
        chunk_end = min(chunk + CHUNK, part.end)
        on_means = on_means_of(step, layout, scratch, chunk)
        for tile in range(chunk, chunk_end, TILE):
            _score_tile(step, layout, scratch, part, tile // TILE, (tile - chunk) // TILE, rows)
        # A loop of its own: the processor then makes the sums of several tiles at the same time.
        for tile in range(chunk, chunk_end, TILE):
            at = on_means + 4 * ROWS * ((tile - chunk) // TILE)
            _multiply_mean(step, layout, scratch, part, tile // TILE, at, rows)
        tests = tests_of(scratch + layout.tests)
        _store_limits(tests, on_means, chunk_end - chunk)
        if known:
            _weigh_and_test(
                tests, weights_of(scratch + layout.weights), scratch + layout.distances,
                scales + chunk, on_means, scratch + layout.state, chunk, chunk_end, rows,
            )  # fmt: skip
        else:
            if step.tail > 0:
                weigh_chunk(
                    weights_of(scratch + layout.weights), scratch + layout.distances,
                    scales + chunk, on_means, scratch + layout.state, chunk, chunk_end, rows,
                )  # fmt: skip
            for tile in range(chunk, chunk_end, TILE):
                _test_tile(tests, scratch + layout.distances, scales + chunk, tile - chunk, rows)
        for i in range(rows):
            first, stop = max(state[i, FIRST], chunk), min(state[i, END], chunk_end)
            if state[i, PLACES] > 0 and first < stop:
                _append_chunk(step, layout, scratch, i, chunk, first, stop, scales, state[i])


@inlined
def _score_tile(step, layout, scratch, part, tile, j, rows):
    """Distances of a tile, as the j-th of a chunk."""
    words = step.planes + part.b * step.planes_b + part.h * step.planes_h
    words += 8 * step.P * TILE * tile
    invoke(
        step.score_tile,
        (
            *(words, words + step.to_low, scratch + layout.queries, rows, step.P, step.weights),
            *(scratch + layout.distances + 2 * TILE * j, 2 * CHUNK),
        ),
    )


@inlined
def _multiply_mean(step, layout, scratch, part, tile, products, rows):
    """Products with the mean of a tile."""
    mean = step.means + part.b * step.means_b + part.h * step.means_h + 2 * step.Dt * tile
    store_on_mean(scratch + layout.x, 4 * scratch_floats(step.Dt), rows, mean, step.Dt, products)


@inlined
def _store_limits(tests, on_means, tokens):
    """The limits of a chunk's tiles, for n s / 2: half of those for n s."""
    least, unit = load_float32(tests.least), load_float32(tests.units)
    half = to_all(np.float32(0.5))  # that is exact, or below any n s that is not 0
    for pair in range(0, tokens, 2 * TILE):
        at = 4 * ROWS * (pair // TILE)
        limits = limits_of(least, load_float32(on_means + at), unit)
        store_float32(tests.limits + at, limits * half)


@inlined
def _test_tile(tests, distances, scales, at, rows):
    """The masks of the tile whose first token is the chunk's token `at`, one per row."""
    row = ROWS * (at // TILE)
    find_promising(
        distances + 2 * at, 2 * CHUNK, scales + at, tests.halves, tests.limits + 4 * row, rows,
        tests.masks + 8 * row,
    )  # fmt: skip


@inlined
def _weigh_and_test(tests, weights, distances, scales, on_means, state, chunk, chunk_end, rows):
    """The masks of a chunk, and the weights of its tokens, whose shifts are known."""
    first, end = competing_for_all(state, rows)
    begin_sums(weights, on_means, chunk_end - chunk, rows, np.float32(0))
    for tile in range(chunk, chunk_end, TILE):
        at = tile - chunk
        row = ROWS * (at // TILE)
        bases = weights.bases + 4 * row
        if first <= tile and tile + TILE <= end and not has_cap(weights):
            add_and_test(
                distances + 2 * at, 2 * CHUNK, scales + at, weights.start, bases, rows,
                tests.limits + 4 * row, tests.masks + 8 * row,
            )  # fmt: skip
        else:
            _test_tile(tests, distances, scales, at, rows)
            mark_competing(weights, state, tile, rows)
            add_tile(weights, distances + 2 * at, scales + at, bases, rows)
    end_sums(weights, rows)


@inlined
def _append_chunk(step, layout, scratch, i, chunk, first, stop, scales, state):
    """Candidates of row i among the tokens first .. stop of a chunk that has been tested."""
    distances = scratch + layout.distances + 2 * CHUNK * i
    on_means = on_means_of(step, layout, scratch, chunk) + 4 * i
    tests = tests_of(scratch + layout.tests)
    near = scratch + layout.near + 4 * step.part_room * i
    near_ranks = scratch + layout.near_ranks + 4 * step.part_room * i
    terms, ranks = scratch + layout.terms + TERMS_BYTES * i, scratch + layout.ranks
    room, places, count, bound = step.part_room, state[PLACES], state[COUNT], state[BOUND]
    total, unit = load_scalar_float32(terms + TOTAL), load_scalar_float32(terms + UNIT)
    # Tiles with a promising token, in a list that is made without a branch.
    found = 0
    for tile in range(first // TILE, (stop - 1) // TILE + 1):
        j = tile - chunk // TILE
        store_int64(tests.found + 8 * found, np.int64(j))
        found += load_uint64(tests.masks + 8 * (ROWS * j + i)) != 0
    for f in range(found - 1, -1, -1):
        if bound < 0:
            break
        j = load_int64(tests.found + 8 * f)
        mask = load_uint64(tests.masks + 8 * (ROWS * j + i))
        mean = load_scalar_float32(on_means + 4 * ROWS * j)
        own, tile = distances + 2 * TILE * j, chunk + TILE * j
        if count_bits(mask) > FEW:
            _rank_tile(own, scales + tile, terms, mean, ranks)
            count, bound = append_tile(
                ranks, tile, first, stop, bound, near, near_ranks, count, room, places
            )
            continue
        mask = those_between(mask, tile, first, stop)
        while mask:
            bit = highest_bit(mask)
            mask ^= np.uint64(1) << np.uint64(bit)
            n = total - np.float32(2) * np.float32(load_uint16(own + 2 * bit))
            rank = rank_of(n * load_scale(scales + tile + bit) * unit + mean)
            store_int32(near + 4 * count, np.int32(tile + bit))
            store_uint32(near_ranks + 4 * count, rank)
            count += rank <= bound
        if count > room - TILE:
            count, kth = keep_best(near, near_ranks, count, places)
            bound = kth - 1
    if bound != state[BOUND]:
        _store_bound(tests, i, bound)
    state[COUNT], state[BOUND] = count, bound


@inlined
def store_candidates(step, row, split, near, near_ranks, count):
    """Store the candidates of a row from one part where `choose_estimated` finds them."""
    to = row * step.row_room + split * sought(step)
    b, h, _, _ = locate(step, row)
    third = step.third + b * step.third_b + h * step.third_h
    for j in range(count):
        if step.tail > 0:
            prefetch(third + 8 * step.P * np.int64(load_int32(near + 4 * j)))  # for the choice
        store_int32(step.candidates + 4 * (to + j), load_int32(near + 4 * j))
        store_uint32(step.ranks + 4 * (to + j), load_uint32(near_ranks + 4 * j))
    store_int64(step.counts + 8 * (row * step.splits + split), np.int64(count))


@outlined
def weigh_again(step, layout, scratch, row, left_out):
    """Add up the weights of a row anew, with a shift that rises to the largest logit.

    Tokens whose bit is 1 at `left_out` are left out. The result is in the place of the first part.
    """
    prepare_estimates(step, layout, scratch, row, 0)
    b, h, _, _ = locate(step, row)
    sums = step.sums + 16 * step.splits * row
    weights = weights_of(scratch + layout.weights)
    state = carray(pointer(scratch + layout.state), (1, STATE_FIELDS), np.int64)
    everything = Part(b * step.H_kv + h, b, h, 0, 0, length_of(step, b))
    begin_row(step, state[0], row, everything, ANY_RANK)
    x = scratch + layout.x
    begin_weights(step, weights, 0, scratch + layout.terms, x)
    scales = step.scales + b * step.scales_b + h * step.scales_h
    for chunk in range(0, everything.end, CHUNK):
        chunk_end = min(chunk + CHUNK, everything.end)
        on_means = on_means_of(step, layout, scratch, chunk)
        for tile in range(chunk, chunk_end, TILE):
            j = (tile - chunk) // TILE
            _score_tile(step, layout, scratch, everything, tile // TILE, j, 1)
            at = on_means + 4 * ROWS * j
            _multiply_mean(step, layout, scratch, everything, tile // TILE, at, 1)
        weigh_chunk(
            weights, scratch + layout.distances, scales + chunk, on_means, scratch + layout.state,
            chunk, chunk_end, 1, left_out,
        )  # fmt: skip
    store_float64(sums, load_float64(weights.shifts))
    store_float64(sums + 8, load_float64(weights.masses))


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
def gathered(step, row):
    """The candidates of a row from all parts, one after another; their ranks, and their number."""
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
    return own, ranks, count


@inlined
def _choose_row(step, layout, scratch, row):
    visible, forced, forced_count = forced_of(step, row)
    own, ranks, count = gathered(step, row)
    places = step.budget - forced_count
    if step.refined > 0:
        count = keep_best(own, ranks, count, step.refined - forced_count)[0]
        count = keep_by_products(step, row, own, count, places, scratch + layout.products)
    else:
        count = keep_best(own, ranks, count, places)[0]
    store_indices(step, row, visible, forced, own, count)
