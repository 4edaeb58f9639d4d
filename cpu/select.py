"""From raw queries to token indices, with distances in a small scratch alone."""

from __future__ import annotations

from math import gcd
from typing import TYPE_CHECKING

import numpy as np
from numba import prange
from numpy.typing import NDArray

from adamas_core.reference.quantize import TILE
from adamas_core.reference.score import INVISIBLE

from ._array import address, dtype_code
from ._jit import kernel, launch, part, threads_for
from ._simd import load_int32, load_int64, store_int32, store_int64
from .hadamard import scratch_floats, transform, transformed_size
from .quantize import bucketize, weigh
from .score import score_tiles, visible_tokens
from .topk import (
    STEP,
    append_run,
    append_topk,
    forced_tokens,
    keep_nearest,
    move_candidate,
)

if TYPE_CHECKING:
    from adamas_core.codes import KeyCodes

CHUNK = 128 * TILE  # tokens between two selections; 16 KiB of distances a row
# What a row carries from chunk to chunk.
FIRST, END = 0, 1  # the tokens that compete are FIRST .. END
TAKE = 2  # for that many places
BOUND = 3  # the largest distance that can still take one
WORDS_A_THREAD = 500_000  # a fifth of a millisecond; another thread costs a tenth to wake
ROWS = 16  # query rows that share a chunk of codes while it is in cache


def select_topk(
    q: NDArray,
    codes: KeyCodes,
    budget: int,
    metric: str = "weighted",
    query_bits: int = 4,
    sinks: int = 0,
    recent: int = 0,
) -> NDArray[np.int32]:
    """Indices (B, H, L, budget) of the tokens nearest to the raw queries q (B, H, L, D)."""
    B, H, L, D = q.shape
    planes = codes.planes
    H_kv, P = planes.shape[2], planes.shape[5]
    indices = np.empty((B, H, L, budget), np.int32)
    if indices.size:
        lengths = np.empty(B, np.int64)
        lengths[:] = codes.length
        thresholds = np.ascontiguousarray(codes.thresholds, np.float32)
        weights = 0 if metric == "manhattan" else query_bits - 1
        # As many parts of the sequence as make every thread busy with whole items.
        threads = threads_for(
            B * H * L * planes.shape[3] * TILE * P * (weights + 1), WORDS_A_THREAD
        )
        splits = threads // gcd(B * H_kv, threads)
        # Candidates of a row: up to `budget` kept, and behind them those of one more chunk.
        # What is counted 64 at a time is rounded up.
        room = -(-(budget + min(budget, CHUNK)) // STEP) * STEP
        candidates = np.empty((B * H * L, splits, room), np.int32)
        ranks = np.empty((B * H * L, splits, room), np.uint16)
        counts = np.empty((B * H * L, splits), np.int64)
        launch(
            *(threads, _select),
            *(address(q), dtype_code(q), *q.strides[:3], B, H, L, D, transformed_size(D)),
            *(address(planes), *planes.strides[:3], H_kv, P, address(lengths)),
            *(address(thresholds), weights, budget, sinks, recent),
            *(splits, room, address(candidates), address(ranks), address(counts)),
            address(indices),
        )
    return indices


@kernel
def _select(
    q, dtype, stride_b, stride_h, stride_l, B, H, L, D, Dt,
    planes, plane_stride, plane_stride_b, plane_stride_h, H_kv, P, lengths,
    thresholds, weights, budget, sinks, recent,
    splits, room, candidates, ranks, counts, indices,
):  # fmt: skip
    G = H // H_kv
    query_words = P * max(weights + 1, 2)
    group = min(ROWS, G * L)
    for item in prange(B * H_kv * splits):
        queries = np.empty((group, query_words), np.uint64)
        floats = np.empty(scratch_floats(Dt), np.float32)
        distances = np.empty(group * CHUNK + 32, np.uint16)
        state = np.empty((group, 4), np.int64)
        head, split = divmod(item, splits)
        b, h = divmod(head, H_kv)
        length = load_int64(lengths + 8 * b)
        high = planes + b * plane_stride_b + h * plane_stride_h
        # Whole chunks to each split, as evenly as they go.
        chunks = (length + CHUNK - 1) // CHUNK
        start = chunks * split // splits * CHUNK
        end = min(chunks * (split + 1) // splits * CHUNK, length)
        for first_row in range(0, G * L, ROWS):
            rows = min(ROWS, G * L - first_row)
            for i in range(rows):
                g, l = divmod(first_row + i, L)
                source = q + b * stride_b + (h * G + g) * stride_h + l * stride_l
                limits = thresholds + 12 * h
                _prepare(source, dtype, D, Dt, limits, weights, queries[i], floats)
            first = splits * (head * G * L + first_row) + split
            _select_rows(
                high, high + plane_stride, queries, P, weights, start, end, length,
                first_row, rows, L, budget, sinks, recent, splits, room,
                candidates + 4 * room * first, ranks + 2 * room * first, counts + 8 * first,
                distances, state,
            )  # fmt: skip
    for row in prange(B * H * L):
        visible = visible_tokens(load_int64(lengths + 8 * (row // (H * L))), L, row % L)
        first = splits * row
        _gather(
            splits, room, candidates + 4 * room * first, ranks + 2 * room * first,
            counts + 8 * first, visible, budget, sinks, recent, indices + 4 * budget * row,
        )  # fmt: skip


@part
def _prepare(q, dtype, D, Dt, thresholds, weights, query, floats):
    """The words of one raw query."""
    x = floats.ctypes.data
    words = query.ctypes.data
    transform(q, dtype, D, Dt, x)
    if weights == 0:
        bucketize(x, Dt, thresholds, words, words + 8 * ((Dt + 63) // 64), 8)
    else:
        weigh(x, Dt, weights + 1, words)


@part
def _select_rows(
    high, low, queries, P, weights, start, end, length, first_row, rows, L, budget, sinks, recent,
    splits, room, candidates, ranks, counts, distances, state,
):  # fmt: skip
    """The nearest of tokens start .. end to each row, into its candidates.

    Chunks come in ascending order, as the prefetchers like it. The budget's last distance so far
    bounds what the next chunk may offer; a token equal to it is newer, and so still wins.
    """
    largest = 64 * P * 3 * ((1 << weights) - 1 if weights > 0 else 1)  # distance there can be
    for i in range(rows):
        visible = visible_tokens(length, L, (first_row + i) % L)
        forced = forced_tokens(visible, budget, sinks, recent)
        state[i, FIRST] = forced[0]
        state[i, END] = forced[2]
        state[i, TAKE] = budget - forced[1] - forced[3]
        state[i, BOUND] = min(largest, INVISIBLE - 1)
        store_int64(counts + 8 * splits * i, 0)
    words = queries.ctypes.data
    query_bytes = 8 * queries.shape[1]
    scratch = (distances.ctypes.data + 63) // 64 * 64
    for chunk in range(start, end, CHUNK):
        chunk_end = min(chunk + CHUNK, end)
        # A tile for all rows in turn: while one is scored, the next already comes from memory.
        for tile in range(chunk, chunk_end, TILE):
            at = 8 * P * tile
            for i in range(rows):
                target = scratch + 2 * (CHUNK * i + tile - chunk)
                score_tiles(high + at, low + at, words + query_bytes * i, P, weights, 1, target)
        for i in range(rows):
            first = max(state[i, FIRST], chunk)
            last = min(state[i, END], chunk_end)
            k = state[i, TAKE]
            if k <= 0 or first >= last:
                continue
            count = load_int64(counts + 8 * splits * i)
            indices = candidates + 4 * room * splits * i
            near = ranks + 2 * room * splits * i
            count += append_topk(
                scratch + 2 * (CHUNK * i + first - chunk), last - first, k, state[i, BOUND],
                first, indices + 4 * count, near + 2 * count,
            )  # fmt: skip
            if count >= k:
                state[i, BOUND] = keep_nearest(indices, near, count, k, state[i, BOUND])
                count = k
            store_int64(counts + 8 * splits * i, count)


@part
def _gather(splits, room, candidates, ranks, counts, visible, budget, sinks, recent, indices):
    """The indices of one row: forced tokens, the nearest of all splits' candidates, padding."""
    sinks, sinks_taken, _, recent_taken = forced_tokens(visible, budget, sinks, recent)
    n = append_run(sinks - sinks_taken, sinks_taken, indices)
    k = budget - sinks_taken - recent_taken
    count = load_int64(counts)
    for split in range(1, splits):
        for i in range(load_int64(counts + 8 * split)):
            move_candidate(candidates, ranks, room * split + i, count)
            count += 1
    if count > k:
        keep_nearest(candidates, ranks, count, k, INVISIBLE - 1)
        count = k
    for i in range(count):
        store_int32(indices + 4 * (n + i), load_int32(candidates + 4 * i))
    n += count
    n += append_run(visible - recent_taken, recent_taken, indices + 4 * n)
    while n < budget:
        store_int32(indices + 4 * n, np.int32(-1))
        n += 1
