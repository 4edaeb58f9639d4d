"""Rows of queries in a step: where they lie, how they are prepared, and a thread's scratch."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from adamas_core.reference.quantize import TILE

from ._array import LINE
from ._jit import inlined, invoke, part
from ._simd import load_int32, load_int64, store_int32
from .attend import attend_scratch
from .hadamard import scratch_floats, transform
from .quantize import bucketize, weigh
from .rerank import keep_best, rerank_scratch
from .score import add_tables, query_bytes, table_bytes, visible_tokens
from .topk import append_run, forced_tokens

CHUNK = 512 * TILE  # tokens scored before their distances are looked at; 64 KiB a row
PART = 64 * TILE  # parts of a head begin at multiples of this
ROWS = 8  # query rows that share a chunk of codes while it is in cache

# What a row carries from chunk to chunk, in int64.
FIRST, END = 0, 1  # the tokens that compete are FIRST .. END
PLACES = 2  # for that many places
BOUND = 3  # the largest distance, or rank, that can still take one
COUNT = 4  # candidates so far
FIELDS = 5

FACTS = 32  # bytes of what an estimate needs of a query, see estimate.py


class Layout(NamedTuple):
    """What a thread's scratch holds, in bytes from its start."""

    queries: int  # prepared
    x: int  # transformed queries: of all rows where there are estimates, else one
    facts: int  # of rows where there are estimates
    on_means: int  # a row's products with the means of a chunk's tiles, float32
    tile_ranks: int  # of 64 tokens, uint32
    distances: int  # of a chunk; for a group, of all tokens
    near: int  # candidates, and their ranks
    near_ranks: int
    state: int  # what a row carries from chunk to chunk
    products: int  # what ranking by them needs
    end: int


@inlined
def estimated(step):
    """Whether tokens are ranked by estimates, 32 bits each, and not by distances."""
    return step.scales != 0 or step.group != 0


@inlined
def candidates_of(step):
    """How many tokens the codes give: by one plane, to rank by products, or those sought."""
    return step.taken if step.taken > 0 else max(step.kept, step.budget)


@inlined
def layout_of(step):
    heads = step.H // step.H_kv
    rows, chosen, tokens = min(ROWS, heads * step.L), min(ROWS, heads * step.L), CHUNK
    if step.group != 0:
        rows, chosen, tokens = heads, 1, step.S
    transformed, extra, width = 1, 0, 2
    if estimated(step):
        transformed, extra, width = rows, rows, 4
    x = rows * query_bytes(step.P, step.weights)
    facts = x + 4 * transformed * scratch_floats(step.Dt)
    on_means = facts + FACTS * extra
    kept = 0 if step.group != 0 else CHUNK // TILE  # products a row; a group uses each at once
    tile_ranks = (on_means + 4 * extra * kept + LINE - 1) // LINE * LINE
    distances = tile_ranks + 4 * TILE
    near = distances + 2 * rows * tokens
    near_ranks = near + 4 * chosen * step.room
    state = near_ranks + width * chosen * step.room
    products = (state + 8 * FIELDS * chosen + LINE - 1) // LINE * LINE
    end = max(products + rerank_scratch(step.D, step.kept), attend_scratch(step.D, step.budget))
    return Layout(
        0, x, facts, on_means, tile_ranks, distances, near, near_ranks, state, products, end + LINE
    )


@inlined
def length_of(step, b):
    """Tokens of a sequence."""
    return step.length if step.lengths == 0 else load_int64(step.lengths + 8 * b)


@inlined
def part_of(step, b, split):
    """The tokens of a part of a sequence, as even as they go; the newest is the first."""
    length = length_of(step, b)
    units = (length + PART - 1) // PART
    start = units * (step.splits - 1 - split) // step.splits * PART
    return start, min(units * (step.splits - split) // step.splits * PART, length)


@inlined
def locate(step, row):
    """The batch, KV head, query and address of a row of queries."""
    head, l = divmod(row, step.L)
    b, h = divmod(head, step.H)
    return b, h * step.H_kv // step.H, l, step.q + b * step.q_b + h * step.q_h + l * step.q_l


@part
def prepare(step, row, query, x):
    """The words and tables of one raw query, and the query transformed."""
    _, h, _, source = locate(step, row)
    words = query + table_bytes(step.P, step.weights)
    transform(source, step.q_dtype, step.D, step.Dt, x)
    if step.weights == 0:
        bucketize(x, step.Dt, step.thresholds + 12 * h, words, words + 8 * step.P, 8)
    else:
        weigh(x, step.Dt, step.weights + 1, words)
        add_tables(query, step.P, step.weights)


@inlined
def begin_row(step, state, row, length, start, end, bound):
    """What a row carries from chunk to chunk, before the first one of tokens start .. end."""
    visible = visible_tokens(length, step.L, row % step.L)
    first, sinks_taken, stop, recent_taken = forced_tokens(
        visible, candidates_of(step), step.sinks, step.recent
    )
    state[FIRST] = max(first, start)
    state[END] = min(stop, end)
    state[PLACES] = candidates_of(step) - sinks_taken - recent_taken
    state[BOUND] = bound
    state[COUNT] = 0


@inlined
def forced_of(step, row):
    """How many visible tokens a row has, its `forced_tokens`, and how many of them are taken.

    What is forced fits into the budget, so it is the same among more candidates.
    """
    b, _, l, _ = locate(step, row)
    visible = visible_tokens(length_of(step, b), step.L, l)
    forced = forced_tokens(visible, step.budget, step.sinks, step.recent)
    return visible, forced, forced[1] + forced[3]


@inlined
def keep_by_products(step, row, candidates, count, places, scratch):
    """Keep the candidates of the largest inner products with the query; how many there are then."""
    b, h, _, source = locate(step, row)
    keys = step.k + b * step.k_b + h * step.k_h
    products = invoke(
        step.rank_by_products,
        (
            *(source, step.q_dtype, step.D, keys, step.k_s, step.kv_dtype),
            *(candidates, count, scratch),
        ),
    )
    return keep_best(candidates, products, count, places)[0]


@inlined
def store_indices(step, row, visible, forced, candidates, count):
    """A row's result, of candidates with the newest first and of the forced tokens around them."""
    first, sinks_taken, _, recent_taken = forced
    indices = step.indices + 4 * step.budget * row
    n = append_run(first - sinks_taken, sinks_taken, indices)
    for i in range(count):
        store_int32(indices + 4 * (n + i), load_int32(candidates + 4 * (count - 1 - i)))
    n += count
    n += append_run(visible - recent_taken, recent_taken, indices + 4 * n)
    while n < step.budget:
        store_int32(indices + 4 * n, np.int32(-1))
        n += 1
