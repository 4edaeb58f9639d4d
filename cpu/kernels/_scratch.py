"""The layout of a thread's scratch memory in a selection."""

from __future__ import annotations

from typing import NamedTuple

from adamas_core.reference.layout import TILE

from .._array import LINE
from ._jit import inlined
from .attend import attend_scratch
from .hadamard import scratch_floats
from .rerank import rerank_scratch
from .score import query_bytes

CHUNK = 512 * TILE  # tokens scored before their distances are looked at; 64 KiB per row
SAMPLE_TILES = 32  # at most, in a sample of estimates
ROWS = 8  # query rows that share a chunk of codes while it is in cache

# The state of a row between chunks, in int64.
FIRST, END = 0, 1  # the tokens that compete are FIRST .. END
PLACES = 2  # the number of places that they compete for
BOUND = 3  # the largest distance, or rank, that can still take a place
COUNT = 4  # candidates so far
STATE_FIELDS = 5

# The terms that estimates take from a query: their byte positions.
TOTAL, UNIT = 0, 4  # float32: 3 W and m / (2 wmax), see reference/estimate.py
INVERSE = 8  # float32, of a head of a group: the inverse of the sum of its weights
BEST = 16  # int64, of a head of a group: its best level
TERMS_BYTES = 32


class Tests(NamedTuple):
    """Where the tests of a chunk's tiles begin, in bytes. Lane i and lane i + ROWS are of row i."""

    least: int  # estimates that a token must reach, 2 * ROWS float32
    units: int  # 2 * ROWS float32
    halves: int  # half of each row's TOTAL, ROWS float32
    limits: int  # ROWS float32 per tile
    masks: int  # ROWS masks of 64 tokens per tile
    found: int  # numbers of tiles, int64, with room for one more
    end: int


@inlined
def tests_of(start):
    """The tests that begin at a line."""
    tiles = CHUNK // TILE
    limits = start + 4 * LINE
    masks = limits + 4 * ROWS * tiles
    found = masks + 8 * ROWS * tiles
    end = found + 8 * tiles + LINE
    return Tests(start, start + LINE, start + 2 * LINE, limits, masks, found, end)


class Weights(NamedTuple):
    """Where the sums of weights of rows begin, see _weights.py. Each has a number per row."""

    start: int
    slopes: int  # float32: the logit of an estimate, in units of ln 2; lanes as in Tests
    starts: int  # float32: what the shift adds to it; lanes as in Tests
    halves: int  # float32: half of the row's TOTAL
    factors: int  # float32: the slope, times twice the unit
    noises: int  # float32: what the square of a scale adds to a logit
    competing: int  # masks of a tile's tokens
    sums: int  # sixteen float32
    shifts: int  # float64, in nats
    masses: int  # float64
    cap: int  # one float32 for all rows: the soft cap in units of ln 2, 0 without one
    bases: int  # float32, per tile: what its mean and the shift add to a logit
    end: int


@inlined
def weights_of(start):
    """The sums that begin at a line."""
    row = 4 * ROWS
    halves = start + 2 * LINE
    competing = halves + 4 * row
    cap = halves + 3 * row
    sums = start + 5 * LINE
    shifts = sums + 64 * ROWS
    masses = shifts + 8 * ROWS
    bases = masses + 8 * ROWS
    end = bases + row * (CHUNK // TILE)
    return Weights(
        start, start, start + LINE, halves, halves + row, halves + 2 * row, competing,
        sums, shifts, masses, cap, bases, end,
    )  # fmt: skip


class Layout(NamedTuple):
    """Where each array begins, in bytes from the start of the scratch."""

    queries: int  # prepared
    x: int  # transformed queries: of all rows if there are estimates, else of one
    terms: int  # of each row, if there are estimates
    on_means: int  # products with the means of tiles, float32, ROWS per tile, see on_means_of
    tests: int  # see Tests
    weights: int  # see Weights
    ranks: int  # of a tile's tokens or a sample, uint32
    distances: int  # of a chunk; for a group, of all tokens
    near: int  # candidates
    near_ranks: int
    state: int  # of each row, between chunks
    products: int  # scratch of ranking by products; then a bit per token that a tier has
    end: int


@inlined
def estimated(step):
    """Whether tokens are ranked by estimates, in 32 bits, and not by distances, in 16."""
    return step.scales != 0 or step.group != 0


@inlined
def on_means_of(step, layout, scratch, chunk):
    """Where the products with the means of a chunk's tiles begin. With a tail those of all stay."""
    return scratch + layout.on_means + (4 * ROWS * (chunk // TILE) if step.tail > 0 else 0)


@inlined
def stay_prepared(step):
    """Whether the queries of a head and their products with means stay from search to choice.

    They do where a thread searches all tokens of a head for all its rows at once. Row i of the head
    is the i-th in the scratch.
    """
    return (step.splits == 1) & (step.H // step.H_kv * step.L <= ROWS)


@inlined
def sought(step):
    """How many tokens the search by codes gives per row."""
    return max(step.refined, step.budget + step.tail)


@inlined
def row_floats(step):
    """Float32 of a transformed query or value."""
    return scratch_floats(max(step.Dt, step.Dvt))


@inlined
def tail_scratch(step):
    """Bytes for the tail of a row: two transformed rows, a list of weights or a row, and scales."""
    return 8 * row_floats(step) + 8 * (max(step.tail, row_floats(step)) + LINE) + LINE


@inlined
def layout_of(step):
    heads = step.H // step.H_kv
    rows, tokens = min(ROWS, heads * step.L), CHUNK
    choosing = rows  # rows with candidates of their own
    if step.group != 0:
        rows, choosing, tokens = heads, 1, step.slots
    transformed, extra, rank_bytes = 1, 0, 2
    if estimated(step):
        transformed, extra, rank_bytes = rows, rows, 4
    x = rows * query_bytes(step.P, step.weights)
    terms = x + 4 * transformed * scratch_floats(step.Dt)
    on_means = (terms + TERMS_BYTES * extra + LINE - 1) // LINE * LINE
    tests = weights = ranks = on_means
    sample = TILE
    if step.scales != 0 and step.group == 0:  # a group uses each product with a mean at once
        tiles = CHUNK // TILE
        if step.tail > 0:
            tiles = max(tiles, step.slots // TILE)
        tests = on_means + 4 * ROWS * (tiles + tiles % 2)
        weights = tests_of(tests).end
        ranks = weights_of(weights).end if step.tail > 0 else weights
        sample = SAMPLE_TILES * TILE
    distances = ranks + 4 * sample
    near = distances + 2 * rows * tokens
    near_ranks = near + 4 * choosing * step.part_room
    state = near_ranks + rank_bytes * choosing * step.part_room
    products = (state + 8 * STATE_FIELDS * choosing + LINE - 1) // LINE * LINE
    by_products = products + rerank_scratch(step.D, step.refined)
    attending = max(attend_scratch(step.D, step.Dv, step.budget), tail_scratch(step))
    chosen = products + (step.slots // 8 if step.tail > 0 else 0)  # a bit per token
    end = max(by_products, attending, chosen) + LINE
    return Layout(
        0,
        x,
        terms,
        on_means,
        tests,
        weights,
        ranks,
        distances,
        near,
        near_ranks,
        state,
        products,
        end,
    )
