"""Rows of queries in a selection: their tokens, their preparation, their results."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from adamas_core.reference.layout import TILE

from ._jit import inlined, invoke, outlined
from ._scratch import BOUND, COUNT, END, FIRST, PLACES, sought
from ._simd import load_int32, load_int64, store_int32
from ._visible import forced_tokens, visible_tokens
from .hadamard import transform
from .quantize import bucketize, weigh
from .rerank import keep_best
from .score import add_tables, table_bytes

PART_TOKENS = 64 * TILE  # parts of a head begin at multiples of this


class Part(NamedTuple):
    """A part of the tokens of a KV head."""

    head: int  # among all heads of the batch
    b: int
    h: int
    split: int  # its number; 0 is the newest
    start: int  # its tokens are start .. end
    end: int


@inlined
def part_of(step, head, split):
    """Part `split` of a head. Parts are as equal as their granularity allows."""
    b, h = divmod(head, step.H_kv)
    length = length_of(step, b)
    units = (length + PART_TOKENS - 1) // PART_TOKENS
    start = units * (step.splits - 1 - split) // step.splits * PART_TOKENS
    end = min(units * (step.splits - split) // step.splits * PART_TOKENS, length)
    return Part(head, b, h, split, start, end)


@inlined
def length_of(step, b):
    """Tokens of a sequence."""
    return step.length if step.lengths == 0 else load_int64(step.lengths + 8 * b)


@inlined
def locate(step, row):
    """The batch, KV head, query and address of a row of queries."""
    head, l = divmod(row, step.L)
    b, h = divmod(head, step.H)
    return b, h * step.H_kv // step.H, l, step.q + b * step.q_b + h * step.q_h + l * step.q_l


@outlined
def prepare(step, row, query, x):
    """The words and tables of one raw query, and the transformed query."""
    _, h, _, source = locate(step, row)
    words = query + table_bytes(step.P, step.weights)
    transform(source, step.q_dtype, step.D, step.Dt, x)
    if step.weights == 0:
        bucketize(x, step.Dt, step.thresholds + 12 * h, words, words + 8 * step.P, 8)
    else:
        weigh(x, step.Dt, step.P, step.weights + 1, words)
        add_tables(query, step.P, step.weights)


@inlined
def begin_row(step, state, row, part, bound):
    """The state of a row before the first chunk of a part."""
    visible = visible_tokens(length_of(step, part.b), step.L, row % step.L)
    first, sinks_taken, stop, recent_taken = forced_tokens(visible, sought(step), step)
    state[FIRST] = max(first, part.start)
    state[END] = min(stop, part.end)
    state[PLACES] = sought(step) - sinks_taken - recent_taken
    state[BOUND] = bound
    state[COUNT] = 0


@inlined
def common_tiles(part, state):
    """The tiles, first .. end, whose tokens compete for all rows; and the most places of a row."""
    first, end, places = part.start, part.end, 0
    for i in range(len(state)):
        first = max(first, state[i, FIRST])
        end = min(end, state[i, END])
        places = max(places, state[i, PLACES])
    return (first + TILE - 1) // TILE, end // TILE, places


@inlined
def forced_of(step, row):
    """Visible tokens of a row, its `forced_tokens`, and how many of these are taken.

    The forced tokens fit into the budget, so they are equal for any larger number of candidates.
    """
    b, _, l, _ = locate(step, row)
    visible = visible_tokens(length_of(step, b), step.L, l)
    forced = forced_tokens(visible, step.budget, step)
    return visible, forced, forced[1] + forced[3]


@inlined
def keep_by_products(step, row, candidates, count, places, scratch):
    """Keep the candidates with the largest inner products; returns how many are left."""
    b, h, _, source = locate(step, row)
    keys = step.k + b * step.k_b + h * step.k_h
    products = invoke(
        step.rank_by_products,
        (source, step.q_dtype, step.D, keys, step.k_s, step.kv_dtype, candidates, count, scratch),
    )
    return keep_best(candidates, products, count, places)[0]


@inlined
def store_indices(step, row, visible, forced, candidates, count):
    """The result of a row: candidates, given newest first, between the forced tokens."""
    first, sinks_taken, _, recent_taken = forced
    indices = step.indices + 4 * step.budget * row
    n = _append_run(first - sinks_taken, sinks_taken, indices)
    for i in range(count):
        store_int32(indices + 4 * (n + i), load_int32(candidates + 4 * (count - 1 - i)))
    n += count
    n += _append_run(visible - recent_taken, recent_taken, indices + 4 * n)
    while n < step.budget:
        store_int32(indices + 4 * n, np.int32(-1))
        n += 1


@outlined
def _append_run(first, count, indices):
    """Append `count` consecutive tokens, the first of which is `first`."""
    for i in range(count):
        store_int32(indices + 4 * i, np.int32(first + i))
    return count
