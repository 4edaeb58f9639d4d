"""The search of one choice of tokens for the query heads of a KV head.

Two passes over a head's tokens: the levels of all its query heads' estimates, which stay in the
thread's memory, 2 bytes a token and head; then, with each head's best level and sum known, the
group's attention.
"""

from __future__ import annotations

import numpy as np

from adamas_core.reference.group import STEPS, WEIGHTS
from adamas_core.reference.quantize import TILE

from ._array import LANES
from ._jit import inlined, invoke, opaque, part
from ._rows import FACTS, layout_of, length_of
from ._simd import (
    largest_level,
    load_int16,
    load_int64,
    load_scalar_float32,
    load_scales,
    store_int64,
    store_levels,
    store_ranks,
    store_scalar_float32,
    sum_of_weights,
    to_all,
    weights_as_float,
)
from ._step import step_at
from .estimate import (
    ANY_RANK,
    BEST,
    INVERSE,
    TOTAL,
    UNIT,
    append_tile,
    doubled,
    on_mean,
    prepare_estimates,
    store_candidates,
)
from .hadamard import scratch_floats
from .score import visible_tokens
from .topk import forced_tokens

_WEIGHTS = tuple(int(w) for w in WEIGHTS)
LEAST = -(2**15)  # the least level


@opaque
def collect_group(address, head, split, scratch):
    """Candidates for the queries of one KV head, in the rows of its first query head."""
    step = step_at(address)
    layout = layout_of(step)
    b, h = divmod(head, step.H_kv)
    heads = step.H // step.H_kv
    for l in range(step.L):
        for g in range(heads):
            prepare_estimates(step, layout, scratch, (head * heads + g) * step.L + l, g)
        visible = visible_tokens(length_of(step, b), step.L, l)
        _find_levels(step, layout, scratch, b, h, visible)
        for g in range(heads):
            levels = scratch + layout.distances + 2 * step.S * g
            _add_up(levels, visible, scratch + layout.facts + FACTS * g)
        _search(step, layout, scratch, head * heads * step.L + l, visible)
    return 0


@inlined
def _find_levels(step, layout, scratch, b, h, visible):
    """Score all tokens for all heads, and turn their distances into levels where they stand."""
    heads, P = step.H // step.H_kv, step.P
    high = step.planes + b * step.planes_b + h * step.planes_h
    distances, gap = scratch + layout.distances, 2 * step.S
    at = step.thresholds + 12 * h
    width = (load_scalar_float32(at + 8) - load_scalar_float32(at)) * np.float32(0.5)
    unit = np.float32(STEPS / np.log(2) * step.D**-0.5)
    for tile in range(0, visible, TILE):
        words = high + 8 * P * tile
        invoke(
            step.score_tile,
            (
                *(words, words + step.plane, scratch + layout.queries, heads, P, step.weights, 2),
                *(distances + 2 * tile, gap),
            ),
        )
        for g in range(heads):
            facts = scratch + layout.facts + FACTS * g
            target = distances + gap * g + 2 * tile
            if step.scales == 0:
                _level_tile(target, facts, 0, width, np.float32(0), unit)
            else:
                means = step.means + b * step.means_b + h * step.means_h
                x = scratch + layout.x + 4 * scratch_floats(step.Dt) * g
                scales = step.scales + b * step.scales_b + h * step.scales_h + tile
                product = on_mean(x, means + 2 * step.Dt * (tile // TILE), step.Dt)
                _level_tile(target, facts, scales, np.float32(1), product, unit)


@part
def _level_tile(distances, facts, scales, width, mean, unit):
    """Levels of a tile's 64 tokens in place of their distances."""
    total = load_scalar_float32(facts + TOTAL)
    own = to_all(load_scalar_float32(facts + UNIT))
    for i in range(0, TILE, LANES):
        n = doubled(distances + 2 * i, 2, total)
        if scales == 0:
            x = n * to_all(width) * own
        else:
            x = n * load_scales(scales + i) * own + to_all(mean)
        store_levels(distances + 2 * i, x * to_all(unit))


@part
def _add_up(levels, visible, facts):
    """The best level of a row's visible tokens, and the inverse of the sum of their weights."""
    best = LEAST
    whole = visible // TILE * TILE
    for tile in range(0, whole, TILE):
        level = largest_level(levels + 2 * tile)
        best = level if level > best else best
    for i in range(whole, visible):
        level = int(load_int16(levels + 2 * i))
        best = level if level > best else best
    total = 0
    for tile in range(0, whole, TILE):
        total += sum_of_weights(levels + 2 * tile, best)
    for i in range(whole, visible):
        steps = min(best - int(load_int16(levels + 2 * i)), 32 * STEPS - 1)
        total += _WEIGHTS[steps % STEPS] >> (steps // STEPS)
    store_int64(facts + BEST, best)
    store_scalar_float32(facts + INVERSE, np.float32(1) / np.float32(max(total, 1)))


@inlined
def _search(step, layout, scratch, row, visible):
    """Candidates by the attention of all heads, newest first; what is behind them ranks nothing."""
    heads = step.H // step.H_kv
    first, sinks_taken, stop, recent_taken = forced_tokens(
        visible, step.budget, step.sinks, step.recent
    )
    places = step.budget - sinks_taken - recent_taken
    near, near_ranks = scratch + layout.near, scratch + layout.near_ranks
    count, bound = 0, ANY_RANK
    if places > 0:
        for tile in range((stop - 1) // TILE * TILE, first // TILE * TILE - 1, -TILE):
            if bound < 0:
                break
            levels = scratch + layout.distances + 2 * tile
            _rank_tile(
                levels, 2 * step.S, scratch + layout.facts, heads, scratch + layout.tile_ranks
            )
            count, bound = append_tile(
                scratch + layout.tile_ranks, tile, first, stop, bound,
                near, near_ranks, count, step.room, places,
            )  # fmt: skip
    store_candidates(step, row, 0, count, places, near, near_ranks)


@part
def _rank_tile(levels, gap, facts, heads, ranks):
    """The ranks of a tile's tokens: the heads' shares, added in their order."""
    for i in range(0, TILE, LANES):
        attention = to_all(np.float32(0))
        for g in range(heads):
            own = facts + FACTS * g
            weights = weights_as_float(levels + gap * g + 2 * i, load_int64(own + BEST))
            attention += weights * to_all(load_scalar_float32(own + INVERSE))
        store_ranks(ranks + 4 * i, attention)
