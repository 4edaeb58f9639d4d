"""The fused step: from raw queries to token indices, and on to attention over them.

One parallel region a call, in which whoever is free takes the next piece of work, so that a thread
that starts late delays no other. A piece is a KV head; or, where heads are few, first a part of a
head's tokens, and then rows of queries whose candidates from all parts are brought together.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numba import prange
from numba.np.numpy_support import carray
from numpy.typing import NDArray

from adamas_core.reference.quantize import TILE
from adamas_core.reference.score import INVISIBLE

from ._array import LINE, address, aligned, dtype_code
from ._jit import inlined, invoke, kernel, opaque, part
from ._rows import (
    BOUND,
    CHUNK,
    COUNT,
    END,
    FIELDS,
    FIRST,
    PART,
    PLACES,
    ROWS,
    begin_row,
    candidates_of,
    estimated,
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
    allow_threads,
    load_int32,
    load_int64,
    load_shared,
    load_uint16,
    pointer,
    prefetch,
    store_int32,
    store_int64,
    store_uint16,
    take_next,
    threads_allowed,
)
from ._step import step_at, step_record
from .attend import attend_rows, attention
from .estimate import choose_estimated, collect_estimated
from .group import collect_group
from .hadamard import transformed_size
from .rerank import rank_by_products
from .score import (
    low_distance,
    manhattan_distance,
    query_bytes,
    score_tile,
    table_bytes,
)
from .topk import (
    STEP,
    append_newest,
    keep_nearest,
    kth_smallest,
    move_candidate,
)

if TYPE_CHECKING:
    from adamas_core.codes import KeyCodes

SAMPLE = 16 * TILE  # tokens that give the first bound
WORDS_A_THREAD = 250_000  # scored in a tenth of a millisecond, which is what waking a thread costs
TILES_AHEAD = 2  # of the high plane alone, asked for before they are scored
AHEAD = 16  # candidates whose codes are asked for before they are ranked again


def select_topk(
    q: NDArray,
    codes: KeyCodes,
    budget: int,
    metric: str = "weighted",
    query_bits: int = 4,
    sinks: int = 0,
    recent: int = 0,
    prefilter: int = 0,
    refine: int = 0,
    group: bool = False,
    k: NDArray | None = None,
) -> NDArray[np.int32]:
    """Indices (B, H, L, budget) of the tokens nearest to the raw queries q (B, H, L, D)."""
    indices = np.empty((*q.shape[:3], budget), np.int32)
    if indices.size:
        keys = (0,) * 4 if k is None else (address(k), *k.strides[:3])
        dtype = 0 if k is None else dtype_code(k)
        options = metric, query_bits, sinks, recent, prefilter, 0 if k is None else refine, group
        _run(q, codes, indices, *options, *keys, *(0,) * 4, dtype, 0, 0, 0.0)
    return indices


def attend_topk(
    q: NDArray,
    k: NDArray,
    v: NDArray,
    codes: KeyCodes,
    budget: int,
    metric: str = "weighted",
    query_bits: int = 4,
    sinks: int = 0,
    recent: int = 0,
    prefilter: int = 0,
    refine: int = 0,
    group: bool = False,
    scale: float | None = None,
) -> tuple[NDArray, NDArray[np.float32]]:
    """Attention over what select_topk takes of k, v (B, H_kv, S, D): out (B, H, L, D) and lse."""
    out = np.empty(q.shape, q.dtype)
    lse = np.empty(q.shape[:3], np.float32)
    if lse.size:
        indices = np.empty((*q.shape[:3], budget), np.int32)
        options = metric, query_bits, sinks, recent, prefilter, refine, group
        _run(q, codes, indices, *options, *attention(k, v, scale, out, lse))
    return out, lse


def _run(
    q: NDArray,
    codes: KeyCodes,
    indices: NDArray[np.int32],
    metric: str,
    query_bits: int,
    sinks: int,
    recent: int,
    prefilter: int,
    refine: int,
    group: bool,
    *attention: float,
) -> None:
    B, H, L, D = q.shape
    planes = codes.planes
    H_kv, T, _, P = planes.shape[2:6]
    length = codes.length
    lengths = None if isinstance(length, int) else np.ascontiguousarray(length, np.int64)
    budget = indices.shape[-1]
    fields = (
        *(score_tile.address, *_search(codes, group)),
        *(rank_by_products.address, attend_rows.address),
        *(address(q), dtype_code(q), *q.strides[:3], B, H, L, D, transformed_size(D)),
        *(address(planes), *planes.strides[:3], H_kv, T * TILE, P),
        *((length, 0) if lengths is None else (0, address(lengths))),
        *(address(codes.thresholds), *_centers(codes)),
        *(0 if metric == "manhattan" else query_bits - 1, budget),
        *(min(prefilter * budget, T * TILE), min(refine * budget, T * TILE)),
        *(sinks, recent, group, address(indices), *attention),
    )
    _step(step_record(fields))


def _search(codes: KeyCodes, group: bool) -> tuple[int, int]:
    """Addresses of the functions that collect candidates and choose from them."""
    if group:
        return collect_group.address, choose_estimated.address
    if codes.centers is not None:
        return collect_estimated.address, choose_estimated.address
    return collect.address, choose.address


def _centers(codes: KeyCodes) -> tuple[int, ...]:
    if codes.centers is None:
        return (0,) * 6
    means, scales, _ = codes.centers
    return (address(means), *means.strides[:2], address(scales), *scales.strides[:2])


@kernel
def _step(steps):
    step = steps[0]
    heads = step.B * step.H_kv
    rows = step.B * step.H * step.L
    allowed = threads_allowed()
    work = rows * step.S * step.P * (step.weights + 1)
    threads = allowed if work >= 2 * WORDS_A_THREAD else 1
    # Whole heads, or as many parts of each as give every thread two pieces of work.
    splits = 1
    if heads % threads != 0 and heads < 4 * threads and step.group == 0:
        splits = max(min(-(-2 * threads // heads), -(-step.S // PART)), 1)
    first = candidates_of(step)
    held = splits * first + STEP
    candidates = np.empty(rows * held, np.int32)
    ranks = np.empty((2 if estimated(step) else 1) * rows * held, np.uint16)
    counts = np.empty(rows * splits, np.int64)
    step.splits = splits
    step.room = -(-(first + max(first, 448)) // STEP) * STEP
    step.held = held
    step.candidates = candidates.ctypes.data
    step.ranks = ranks.ctypes.data
    step.counts = counts.ctypes.data
    # Next item, next rows, and how many parts of each head are done.
    shared = np.zeros(2 + heads, np.int64)
    at, scratch_bytes = steps.ctypes.data, layout_of(step).end
    allow_threads(threads)
    for _thread in prange(threads):
        scratch = np.empty(scratch_bytes, np.uint8)
        _work(at, splits, threads, candidates, ranks, counts, shared, scratch)
    allow_threads(allowed)


@part
def _work(step, splits, threads, candidates, ranks, counts, shared, scratch):
    """One thread's share. The arrays are alive as long as the caller holds them by these names."""
    at = shared.ctypes.data
    if splits == 1:
        _whole_heads(step, at, aligned(scratch))
    else:
        _parts_of_heads(step, threads, at, aligned(scratch))


@inlined
def _whole_heads(address, next_head, scratch):
    """Heads that no other thread has taken."""
    step = step_at(address)
    rows = step.H // step.H_kv * step.L
    while True:
        head = take_next(next_head)
        if head >= step.B * step.H_kv:
            break
        invoke(step.collect, (address, head, 0, scratch))
        _finish(address, rows * head, rows * (head + 1), scratch)


@inlined
def _finish(address, start, end, scratch):
    """Rows whose candidates are all there."""
    step = step_at(address)
    invoke(step.choose, (address, start, end, scratch))
    if step.out != 0:
        invoke(step.attend_rows, (address, start, end, scratch))


@inlined
def _parts_of_heads(address, threads, next_item, scratch):
    """Parts of heads that no other thread has taken, then rows of heads whose parts are done."""
    step = step_at(address)
    heads, rows = step.B * step.H_kv, step.H // step.H_kv * step.L
    next_unit = next_item + 8
    parts_done = next_item + 16
    while True:
        item = take_next(next_item)
        if item >= heads * step.splits:
            break
        head, split = divmod(item, step.splits)
        invoke(step.collect, (address, head, split, scratch))
        take_next(parts_done + 8 * head)
    unit = max(1, min(rows, heads * rows // (8 * threads)))
    units = (rows + unit - 1) // unit
    while True:
        item = take_next(next_unit)
        if item >= heads * units:
            break
        head, i = divmod(item, units)
        while load_shared(parts_done + 8 * head) < step.splits:
            pass  # another thread is about to finish it
        start = rows * head + unit * i
        _finish(address, start, min(start + unit, rows * (head + 1)), scratch)


@opaque
def collect(address, head, split, scratch):
    """Candidates for the rows of one KV head from one part of its tokens."""
    step = step_at(address)
    layout = layout_of(step)
    b, h = divmod(head, step.H_kv)
    rows = step.H // step.H_kv * step.L
    length = length_of(step, b)
    start, end = part_of(step, b, split)
    for first_row in range(0, rows, ROWS):
        count = min(ROWS, rows - first_row)
        for i in range(count):
            query = scratch + layout.queries + i * query_bytes(step.P, step.weights)
            prepare(step, rows * head + first_row + i, query, scratch + layout.x)
        _select_rows(
            step, layout, scratch, b, h, rows * head + first_row, split, count, start, end, length
        )
    return 0


@inlined
def _select_rows(step, layout, scratch, b, h, first_row, split, rows, start, end, length):
    """The nearest of tokens start .. end to each of some rows of a head, newest first.

    Chunks come newest first, so that among equals who comes first wins, and tokens inside a chunk
    in ascending order, as the prefetchers like it. A sample, or what the only chunk holds, gives
    the first bound; from then on the candidates themselves do.
    """
    P, weights, room = step.P, step.weights, step.room
    high = step.planes + b * step.planes_b + h * step.planes_h
    low = high + step.plane
    planes = 1 if step.taken > 0 else 2
    budget = candidates_of(step)
    largest = min(64 * P * 3 * ((1 << weights) - 1 if weights > 0 else 1), INVISIBLE - 1)
    gap = 2 * CHUNK
    queries, distances = scratch + layout.queries, scratch + layout.distances
    state = carray(pointer(scratch + layout.state), (rows, FIELDS), np.int64)
    common_first, common_end, most = start, end, 0  # tokens that compete for all rows
    for i in range(rows):
        begin_row(step, state[i], first_row + i, length, start, end, largest)
        common_first = max(common_first, state[i, FIRST])
        common_end = min(common_end, state[i, END])
        most = max(most, state[i, PLACES])
    sampled = _sample(
        step, high, low, queries, planes, common_first, common_end, most, distances, state
    )
    last_chunk = start + (end - 1 - start) // CHUNK * CHUNK
    for chunk in range(last_chunk, start - 1, -CHUNK):
        chunk_end = min(chunk + CHUNK, end)
        for tile in range(chunk, chunk_end, TILE):
            at = 8 * P * tile
            target = distances + 2 * (tile - chunk)
            if planes == 1:  # of one stream alone the hardware asks for too little ahead
                for line in range(0, 8 * P * TILE, LINE):
                    prefetch(high + at + TILES_AHEAD * 8 * P * TILE + line)
            invoke(
                step.score_tile,
                (high + at, low + at, queries, rows, P, weights, planes, target, gap),
            )
        for i in range(rows):
            first, stop = max(state[i, FIRST], chunk), min(state[i, END], chunk_end)
            places = state[i, PLACES]
            if places <= 0 or first >= stop:
                continue
            row = distances + gap * i
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
        to = (first_row + i) * step.held + split * budget
        for j in range(count):
            store_int32(step.candidates + 4 * (to + j), load_int32(near + 4 * j))
            store_uint16(step.ranks + 2 * (to + j), load_uint16(near_ranks + 2 * j))
        store_int64(step.counts + 8 * ((first_row + i) * step.splits + split), np.int64(count))


@inlined
def _sample(step, high, low, queries, planes, first, end, places, distances, state):
    """Bound each row by a sample of tiles spread over tokens first .. end, if there are enough."""
    tiles = min(max(SAMPLE, 8 * places), CHUNK) // TILE
    first_tile, end_tile = (first + TILE - 1) // TILE, end // TILE
    if places <= 0 or tiles * TILE < 2 * places or end_tile - first_tile < 4 * tiles:
        return False
    rows, P, gap = len(state), step.P, 2 * CHUNK
    for j in range(tiles):
        at = 8 * P * TILE * (first_tile + j * (end_tile - first_tile) // tiles)
        target = distances + 2 * TILE * j
        invoke(
            step.score_tile,
            (high + at, low + at, queries, rows, P, step.weights, planes, target, gap),
        )
    for i in range(rows):
        if state[i, PLACES] > 0:
            state[i, BOUND] = kth_smallest(
                distances + gap * i, tiles * TILE, state[i, PLACES], state[i, BOUND]
            )
    return True


@opaque
def choose(address, start, end, scratch):
    """The indices of rows start .. end from the candidates of all parts."""
    step = step_at(address)
    layout = layout_of(step)
    for row in range(start, end):
        b, h, _, _ = locate(step, row)
        visible, forced, taken = forced_of(step, row)
        own = step.candidates + 4 * step.held * row
        ranks = step.ranks + 2 * step.held * row
        counts = step.counts + 8 * step.splits * row
        count = load_int64(counts)
        for split in range(1, step.splits):
            for i in range(load_int64(counts + 8 * split)):
                move_candidate(own, ranks, candidates_of(step) * split + i, count)
                count += 1
        if step.taken > 0:
            count = _reduce(own, ranks, count, step.taken - taken)
            query = scratch + layout.queries
            prepare(step, row, query, scratch + layout.x)
            high = step.planes + b * step.planes_b + h * step.planes_h
            words = query + table_bytes(step.P, step.weights)
            _rank_again(own, ranks, count, high, high + step.plane, words, step.P, step.weights)
        if step.kept > 0:
            count = _reduce(own, ranks, count, step.kept - taken)
            places = step.budget - taken
            count = keep_by_products(step, row, own, count, places, scratch + layout.products)
        else:
            count = _reduce(own, ranks, count, step.budget - taken)
        store_indices(step, row, visible, forced, own, count)
    return 0


@inlined
def _reduce(candidates, ranks, count, places):
    """Keep the nearest; how many candidates there are then."""
    if count > places:
        keep_nearest(candidates, ranks, count, places, INVISIBLE - 1)
        return places
    return count


@inlined
def _rank_again(candidates, ranks, count, high, low, query, P, weights):
    """Distances of candidates by both planes; their codes are asked for some candidates ahead.

    Under the weighted metric a rank by signs is the high plane's share already.
    """
    for i in range(count):
        ahead = load_int32(candidates + 4 * min(i + AHEAD, count - 1))
        for p in range(P):
            at = 64 * P * (ahead // 8) + 64 * p
            prefetch(low + at)
            if weights == 0:
                prefetch(high + at)
        token = load_int32(candidates + 4 * i)
        if weights == 0:
            distance = manhattan_distance(high, low, query, P, token)
        else:
            signs = np.int64(load_uint16(ranks + 2 * i))
            distance = 2 * signs + low_distance(low, query, P, weights, token)
        store_uint16(ranks + 2 * i, np.uint16(distance))
