"""The search of one choice of tokens for the query heads of a KV head.

It takes two passes over the tokens of a head. The first one makes levels of the estimates of all
query heads. They stay in the thread's memory, 2 bytes per token and query head. Then each head's
best level and sum are known, and the second pass makes the attention of the group.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba.core import types

from adamas_core.reference.group import STEPS, WEIGHTS
from adamas_core.reference.layout import TILE

from ._float_rows import LANES
from ._jit import inlined, invoke, opaque, outlined
from ._memory import step_at
from ._queries import length_of
from ._scratch import BEST, INVERSE, TERMS_BYTES, TOTAL, UNIT, layout_of
from ._simd import (
    I16,
    I32,
    I64,
    F32x16,
    I16x16,
    I32x16,
    call,
    constant,
    load,
    load_int16,
    load_int64,
    load_scalar_float32,
    operation,
    splat,
    store,
    store_int64,
    store_scalar_float32,
    to_all,
)
from ._visible import forced_tokens, visible_tokens
from .center import load_scales
from .estimate import (
    ANY_RANK,
    append_tile,
    doubled,
    on_mean,
    prepare_estimates,
    store_candidates,
    store_ranks,
)
from .hadamard import scratch_floats
from .rerank import keep_best

_WEIGHTS = tuple(int(w) for w in WEIGHTS)
LOWEST_LEVEL = -(2**15)


# ---- levels and their weights ------------------------------------------------------------------


@operation(types.void, types.int64, F32x16)
def store_levels(builder: Any, address: Any, x: Any) -> None:
    """Sixteen numbers as int16: rounded down, and clipped. NaN is the lowest level."""
    lowest, highest = constant(x.type, -32768.0), constant(x.type, 32767.0)
    x = call(builder, "llvm.floor.v16f32", x.type, x)
    x = builder.select(builder.fcmp_ordered(">", x, lowest), x, lowest)  # NaN is not above
    x = builder.select(builder.fcmp_ordered("<", x, highest), x, highest)
    store(builder, address, builder.trunc(builder.fptosi(x, I32x16), I16x16))


@operation(types.int64, types.int64)
def largest_level(builder: Any, address: Any) -> Any:
    """The largest of 64 int16."""
    levels = load(builder, address, ir.VectorType(I16, 64))
    return builder.sext(call(builder, "llvm.vector.reduce.smax.v64i16", I16, levels), I64)


def _weights(builder: Any, address: Any, best: Any) -> Any:
    """The weights of sixteen levels, none of which is above `best`."""
    level = builder.sext(load(builder, address, I16x16), I32x16)
    i = builder.sub(splat(builder, I32x16, builder.trunc(best, I32)), level)
    last = constant(I32x16, 32 * STEPS - 1)
    i = builder.select(builder.icmp_unsigned("<", i, last), i, last)
    remainder = builder.and_(i, constant(I32x16, STEPS - 1))
    weight = constant(I32x16, _WEIGHTS[0])
    for number, value in enumerate(_WEIGHTS[1:], 1):
        here = builder.icmp_unsigned("==", remainder, constant(I32x16, number))
        weight = builder.select(here, constant(I32x16, value), weight)
    return builder.lshr(weight, builder.lshr(i, constant(I32x16, STEPS.bit_length() - 1)))


@operation(types.int64, types.int64, types.int64)
def sum_of_weights(builder: Any, address: Any, best: Any) -> Any:
    """The sum of the weights of 64 levels: at most 2^22."""
    total = constant(I32x16, 0)
    for i in range(4):
        total = builder.add(total, _weights(builder, builder.add(address, I64(32 * i)), best))
    return builder.zext(call(builder, "llvm.vector.reduce.add.v16i32", I32, total), I64)


@operation(F32x16, types.int64, types.int64)
def weights_as_float(builder: Any, address: Any, best: Any) -> Any:
    return builder.uitofp(_weights(builder, address, best), F32x16.ir)


# ---- the search --------------------------------------------------------------------------------


@opaque
def collect_group(at, head, split, scratch):
    """Candidates for the queries of one KV head, in the rows of its first query head."""
    step = step_at(at)
    layout = layout_of(step)
    b, h = divmod(head, step.H_kv)
    heads = step.H // step.H_kv
    for l in range(step.L):
        for g in range(heads):
            prepare_estimates(step, layout, scratch, (head * heads + g) * step.L + l, g)
        visible = visible_tokens(length_of(step, b), step.L, l)
        _find_levels(step, layout, scratch, b, h, visible)
        for g in range(heads):
            levels = scratch + layout.distances + 2 * step.slots * g
            _add_up(levels, visible, scratch + layout.terms + TERMS_BYTES * g)
        _search_tokens(step, layout, scratch, head * heads * step.L + l, visible)
    return 0


@inlined
def _find_levels(step, layout, scratch, b, h, visible):
    """Score all tokens for all heads, and replace their distances by levels."""
    heads, P, Dt = step.H // step.H_kv, step.P, step.Dt
    high = step.planes + b * step.planes_b + h * step.planes_h
    distances, stride = scratch + layout.distances, 2 * step.slots
    at = step.thresholds + 12 * h
    width = (load_scalar_float32(at + 8) - load_scalar_float32(at)) * np.float32(0.5)
    unit = np.float32(STEPS / np.log(2) * step.scale)
    for tile in range(0, visible, TILE):
        words = high + 8 * P * tile
        invoke(
            step.score_tile,
            (
                *(words, words + step.to_low, scratch + layout.queries, heads, P, step.weights),
                *(distances + 2 * tile, stride),
            ),
        )
        for g in range(heads):
            terms = scratch + layout.terms + TERMS_BYTES * g
            target = distances + stride * g + 2 * tile
            if step.scales == 0:
                _level_tile(target, terms, 0, width, np.float32(0), unit)
            else:
                means = step.means + b * step.means_b + h * step.means_h
                x = scratch + layout.x + 4 * scratch_floats(Dt) * g
                scales = step.scales + b * step.scales_b + h * step.scales_h + tile
                product = on_mean(x, means + 2 * Dt * (tile // TILE), Dt)
                _level_tile(target, terms, scales, np.float32(1), product, unit)


@outlined
def _level_tile(distances, terms, scales, width, mean, unit):
    """Replace the distances of a tile's 64 tokens by their levels."""
    total = load_scalar_float32(terms + TOTAL)
    own = to_all(load_scalar_float32(terms + UNIT))
    for i in range(0, TILE, LANES):
        n = doubled(distances + 2 * i, total)
        if scales == 0:
            x = n * to_all(width) * own
        else:
            x = n * load_scales(scales + i) * own + to_all(mean)
        store_levels(distances + 2 * i, x * to_all(unit))


@outlined
def _add_up(levels, visible, terms):
    """The best level of a row's visible tokens, and the inverse of the sum of their weights."""
    best = LOWEST_LEVEL
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
    store_int64(terms + BEST, best)
    store_scalar_float32(terms + INVERSE, np.float32(1) / np.float32(max(total, 1)))


@inlined
def _search_tokens(step, layout, scratch, row, visible):
    """Candidates by the attention of all heads, newest first."""
    heads = step.H // step.H_kv
    first, sinks_taken, stop, recent_taken = forced_tokens(visible, step.budget, step)
    places = step.budget - sinks_taken - recent_taken
    near, near_ranks = scratch + layout.near, scratch + layout.near_ranks
    ranks = scratch + layout.ranks
    count, bound = 0, ANY_RANK
    if places > 0:
        for tile in range((stop - 1) // TILE * TILE, first // TILE * TILE - 1, -TILE):
            if bound < 0:
                break
            levels = scratch + layout.distances + 2 * tile
            _rank_tile(levels, 2 * step.slots, scratch + layout.terms, heads, ranks)
            count, bound = append_tile(
                ranks, tile, first, stop, bound, near, near_ranks, count, step.part_room, places
            )
    count, _ = keep_best(near, near_ranks, count, places)
    store_candidates(step, row, 0, near, near_ranks, count)


@outlined
def _rank_tile(levels, stride, terms, heads, ranks):
    """The ranks of a tile's tokens: the shares of the heads, added in their order."""
    for i in range(0, TILE, LANES):
        attention = to_all(np.float32(0))
        for g in range(heads):
            own = terms + TERMS_BYTES * g
            weights = weights_as_float(levels + stride * g + 2 * i, load_int64(own + BEST))
            attention += weights * to_all(load_scalar_float32(own + INVERSE))
        store_ranks(ranks + 4 * i, attention)
