"""Attention to all tokens in three tiers: exact, by codes, and the rest together."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from llvmlite import ir
from numba.core import types

from adamas_core.reference.center import FINE_NOISE, NOISE
from adamas_core.reference.layout import TILE

from .._array import FLOAT32, LINE
from ._cap import cap_one, capped
from ._coded_sum import sum_codes
from ._exp import exp
from ._float_rows import LANES, item_bytes, load_first_lanes, narrow_row, widen_row
from ._jit import inlined, opaque, outlined
from ._memory import step_at
from ._queries import forced_of, keep_by_products, length_of, locate, part_of, store_indices
from ._scratch import layout_of, row_floats, sought, stay_prepared
from ._simd import (
    F64,
    F32x16,
    constant,
    first_lanes,
    larger_number,
    largest_of,
    load_float32,
    load_float64,
    load_int32,
    load_int64,
    load_scalar_float32,
    load_uint8,
    load_uint32,
    load_uint64,
    operation,
    prefetch,
    splat,
    store_float32,
    store_float64,
    store_int32,
    store_int64,
    store_scalar_float32,
    store_uint8,
    store_uint32,
    store_uint64,
    sum_of,
    to_all,
)
from ._third_bits import rank_by_three_bits
from ._visible import visible_tokens
from ._weights import (
    HIGHEST,
    LEAST,
    LOG2_E,
    cap_in_bits,
    capped_weights_of_ranks,
    load_estimates,
    weights_of_ranks,
)
from .center import load_scales
from .estimate import gathered, least_of, prepare_estimates, weigh_again
from .hadamard import transform
from .rerank import keep_best

CHOSEN = 1024  # tokens whose weights are added up at a time


# ---- the choice of both tiers ------------------------------------------------------------------


@opaque
def choose_tail(at, start, end, scratch):
    """The indices of both tiers of rows start .. end, and the weights of the rest."""
    step = step_at(at)
    layout = layout_of(step)
    for row in range(start, end):
        _choose_row(step, layout, scratch, row)
    return 0


@inlined
def _choose_row(step, layout, scratch, row):
    visible, forced, forced_count = forced_of(step, row)
    own, ranks, count = gathered(step, row)
    count, _ = keep_best(own, ranks, count, sought(step) - forced_count)
    coded = step.coded + 4 * step.coded_room * row
    fine = step.coded_ranks + 4 * step.coded_room * row
    i = 0
    if stay_prepared(step):  # `weigh_again` changes only those of the head's first row
        i = row % (step.H // step.H_kv * step.L)
    else:
        prepare_estimates(step, layout, scratch, row, 0)
    rank_by_three_bits(step, layout, scratch, row, i, own, ranks, count, fine)
    # The places of candidates of a search are free.
    exact, exact_ranks = scratch + layout.near, scratch + layout.near_ranks
    for i in range(count):
        store_int32(exact + 4 * i, load_int32(own + 4 * i))
        store_uint32(exact_ranks + 4 * i, load_uint32(fine + 4 * i))
    places = step.budget - forced_count
    if step.refined > 0:
        n, _ = keep_best(exact, exact_ranks, count, step.refined - forced_count)
        n = keep_by_products(step, row, exact, n, places, scratch + layout.products)
    else:
        n, _ = keep_best(exact, exact_ranks, count, places)
    store_indices(step, row, visible, forced, exact, n)
    # Ranks by two bits go with the exact tier, and with the others, which are the coded tier if
    # nothing is refined. All lists are newest first.
    others = next_exact = 0
    b, h, _, _ = locate(step, row)
    values = step.v_codes + b * step.v_codes_b + h * step.v_codes_h
    for i in range(count):
        prefetch(values + 16 * step.Pv * np.int64(load_int32(own + 4 * i)))
        token, rank = load_int32(own + 4 * i), load_uint32(ranks + 4 * i)
        # No branch decides where it goes.
        is_exact = (next_exact < n) & (load_int32(exact + 4 * next_exact) == token)
        store_uint32(exact_ranks + 4 * next_exact, rank)
        store_int32(coded + 4 * others, token)
        store_uint32(fine + 4 * others, load_uint32(fine + 4 * i))
        store_uint32(ranks + 4 * others, rank)
        next_exact += is_exact
        others += not is_exact
    if others > step.tail:
        others = _keep_tail(step, coded, fine, own, ranks, others)
    store_int64(step.coded_counts + 8 * row, others)
    _weigh_rest(step, layout, scratch, row, n, others, visible - forced_count)


@outlined
def _keep_tail(step, coded, fine, left, ranks, count):
    """Keep the tail's best tokens by three bits, with both of their ranks; `left` is free."""
    for i in range(count):
        store_int32(left + 4 * i, np.int32(i))
    kept, _ = keep_best(left, fine, count, step.tail)
    for i in range(kept):
        at = np.int64(load_int32(left + 4 * i))  # not below i
        store_int32(coded + 4 * i, load_int32(coded + 4 * at))
        store_uint32(ranks + 4 * i, load_uint32(ranks + 4 * at))
    return kept


@inlined
def noise_of(step, row, scratch):
    """What the square of a token's scale takes from its logit, in nats."""
    _, _, _, source = locate(step, row)
    widen_row(source, step.q_dtype, step.D, scratch)
    squares = to_all(np.float32(0))
    for d in range(0, step.D, LANES):
        x = load_float32(scratch + 4 * d)
        squares += x * x
    return 0.5 * NOISE * step.scale * step.scale * np.float64(sum_of(squares))


@operation(F32x16, types.int64, types.int64, types.float64, types.float64)
def logits_of(builder: Any, ranks: Any, scales: Any, slope: Any, noise: Any) -> Any:
    """The logits of sixteen tokens, without a cap.

    `ranks` is the address of their ranks, and `scales` that of the bytes of their scales. `slope`
    is a logit per estimate, `noise` what the square of a scale takes.
    """
    wide = ir.VectorType(F64, LANES)
    estimates = builder.fpext(load_estimates(builder, ranks), wide)
    s = builder.fpext(load_scales(builder, scales), wide)
    less = builder.fmul(builder.fmul(splat(builder, wide, noise), s), s)
    logits = builder.fsub(builder.fmul(splat(builder, wide, slope), estimates), less)
    return builder.fptrunc(logits, F32x16.ir)


@operation(F32x16, F32x16, types.int64)
def only_first(builder: Any, logits: Any, count: Any) -> Any:
    """The first `count` of sixteen logits, and -inf in the other lanes."""
    lanes = first_lanes(builder, logits.type, count)
    return builder.select(lanes, logits, constant(logits.type, float("-inf")))


@outlined
def _weigh_rest(step, layout, scratch, row, exact, coded, competing):
    """The shift and the sum of weights of the tokens that neither tier has.

    That is the sum over all that compete, less those of the chosen ones. The rest is weighed again,
    without the chosen ones, if the shifts were guessed too low (then a token that is not chosen may
    have been cut at HIGHEST) or too high (then weights were lost), or if too little is left of the
    sum: a weight has a relative error of 2^-18, so the rest would have one of more than 2^-8.
    """
    to = step.rest + 16 * row
    store_float64(to, 0.0)
    store_float64(to + 8, 0.0)
    if competing <= exact + coded:
        return
    b, h, _, _ = locate(step, row)
    head = b * step.H_kv + h
    scales = step.scales + b * step.scales_b + h * step.scales_h
    noise = noise_of(step, row, scratch + layout.products)
    sums = step.sums + 16 * step.splits * row
    lists = (scratch + layout.near, step.coded + 4 * step.coded_room * row)
    ranks = (scratch + layout.near_ranks, step.ranks + 4 * step.row_room * row)
    worst = np.uint32(0)
    for i in range(coded):
        worst = max(worst, load_uint32(ranks[1] + 4 * i))
    shift, lowest, largest = -np.inf, np.inf, 0.0
    for split in range(step.splits):
        one = load_float64(sums + 16 * split)
        if one > -np.inf:  # the part has a token that competes
            shift, lowest = max(shift, one), min(lowest, one)
            largest = max(largest, load_float64(sums + 16 * split + 8))
    too_high = largest < 2.0**30 * LEAST  # the noise takes the logits far below the estimates
    highest = cap_one(step.scale * np.float64(least_of(np.int64(worst))), step.soft_cap)
    too_low = highest - lowest > HIGHEST
    mass = whole = 0.0
    for split in range(step.splits):
        one = load_float64(sums + 16 * split)
        if one == -np.inf:
            continue
        own = load_float64(sums + 16 * split + 8)
        whole += own * math.exp(one - shift)
        part = part_of(step, head, split)
        start, end = (part.start, part.end) if step.splits > 1 else (0, length_of(step, b))
        for tier in range(2):
            own -= _sum_chosen(
                step, layout, scratch, lists[tier], ranks[tier], coded if tier else exact,
                (start, end), (scales, noise), one,
            )  # fmt: skip
        mass += max(own, 0.0) * math.exp(one - shift)
    if too_high or too_low or not mass > 2.0**-10 * whole:
        left_out = scratch + layout.products
        _mark(left_out, step.slots, lists[0], exact)
        _mark(left_out, 0, lists[1], coded)
        weigh_again(step, layout, scratch, row, left_out)
        shift, mass = load_float64(sums), load_float64(sums + 8)
    store_float64(to, shift)
    store_float64(to + 8, mass)


@inlined
def _mark(bits, tokens, chosen, n):
    """Set the bits of n chosen tokens, after all bits of the first `tokens` tokens are cleared."""
    for i in range(0, tokens, TILE):
        store_uint64(bits + i // 8, np.uint64(0))
    for i in range(n):
        token = np.int64(load_int32(chosen + 4 * i))
        word = bits + 8 * (token // TILE)
        store_uint64(word, load_uint64(word) | np.uint64(1) << np.uint64(token % TILE))


@outlined
def _sum_chosen(step, layout, scratch, tokens, ranks, n, part, of_keys, shift):
    """The sum of the weights of those of n chosen tokens that lie in a part, start .. end.

    `of_keys` is the address of the tokens' scales, and their noise. Distances are free by now.
    """
    (first_token, end), (scales, noise) = part, of_keys
    own_ranks = scratch + layout.distances
    own_scales = own_ranks + 4 * CHOSEN
    slope, less = np.float32(step.scale) * LOG2_E, np.float32(-noise) * LOG2_E
    start, cap = np.float32(-shift) * LOG2_E, cap_in_bits(step.soft_cap)
    total = 0.0
    for first in range(0, n, CHOSEN):
        count = 0
        for i in range(first, min(first + CHOSEN, n)):
            token = load_int32(tokens + 4 * i)
            store_uint32(own_ranks + 4 * count, load_uint32(ranks + 4 * i))
            store_uint8(own_scales + count, load_uint8(scales + token))
            count += (first_token <= token) & (token < end)
        sums = to_all(np.float32(0))
        for i in range(0, count, LANES):
            at = own_ranks + 4 * i, own_scales + i
            if cap > 0:
                sums += capped_weights_of_ranks(*at, slope, less, start, count - i, cap)
            else:
                sums += weights_of_ranks(*at, slope, less, start, count - i)
        total += np.float64(sum_of(sums))
    return total


# ---- the sum of three tiers --------------------------------------------------------------------


@opaque
def add_tail(at, start, end, scratch):
    """Add the coded tier and the rest to the exact tier of rows start .. end."""
    step = step_at(at)
    for row in range(start, end):
        _add_row(step, row, scratch)
    return 0


@outlined
def _add_row(step, row, scratch):
    b, h, l, _ = locate(step, row)
    Dv, Dvt, cap = step.Dv, step.Dvt, np.float32(step.soft_cap)
    length = length_of(step, b)
    visible = visible_tokens(length, step.L, l)
    out = step.out + 4 * Dv * row
    target = step.whole_out + item_bytes(step.q_dtype) * Dv * row
    if visible <= 0:
        narrow_row(out, Dv, target, step.q_dtype)
        return
    sums = scratch
    back = sums + 4 * row_floats(step)
    weights = back + 4 * row_floats(step)
    n = load_int64(step.coded_counts + 8 * row)
    scales = weights + 4 * (max(step.tail, row_floats(step)) + LINE)
    noise = noise_of(step, row, sums) * (FINE_NOISE / NOISE)
    tokens = step.coded + 4 * step.coded_room * row
    ranks = step.coded_ranks + 4 * step.coded_room * row
    key_scales = step.finer + b * step.finer_b + h * step.finer_h
    shift = load_float64(step.rest + 16 * row)
    rest = load_float64(step.rest + 16 * row + 8)
    lse = np.float64(load_scalar_float32(step.lse + 4 * row))
    largest = lse
    if rest > 0:
        largest = max(largest, shift)
    most = to_all(np.float32(largest))
    for i in range(n):
        store_uint8(scales + i, load_uint8(key_scales + load_int32(tokens + 4 * i)))
    for i in range(0, n, LANES):
        logits = logits_of(ranks + 4 * i, scales + i, step.scale, noise)
        if cap > 0:
            logits = capped(logits, cap)
        logits = only_first(logits, n - i)
        store_float32(weights + 4 * i, logits)
        most = larger_number(most, logits)
    largest = np.float64(largest_of(most))
    mass = to_all(np.float32(0))
    for i in range(0, n, LANES):
        share = exp(load_float32(weights + 4 * i) - to_all(np.float32(largest)))
        store_float32(weights + 4 * i, share)
        mass += share
    first = np.float32(0)  # the weights of tokens of the first tile, which come last
    for i in range(n - 1, -1, -1):
        if load_int32(tokens + 4 * i) >= TILE:
            break
        first += load_scalar_float32(weights + 4 * i)
    others = max(sum_of(mass) - first, np.float32(0))
    sum_codes(step, b, h, tokens, n, weights, sums)
    transform(sums, FLOAT32, Dvt, Dvt, back)
    _add_bases(step, b, h, first, others, back)
    exact = math.exp(lse - largest)
    rest *= math.exp(shift - largest) if rest > 0 else 0.0
    whole = exact + np.float64(sum_of(mass)) + rest
    _sum_seen(step, b, h, visible if rest > 0 else 0, sums, weights)
    for d in range(0, Dv, LANES):
        y = load_first_lanes(out + 4 * d, FLOAT32, Dv - d) * to_all(np.float32(exact / whole))
        y += load_float32(back + 4 * d) * to_all(np.float32(1 / whole))
        y += load_float32(sums + 4 * d) * to_all(np.float32(rest / whole / visible))
        store_float32(sums + 4 * d, y)
    narrow_row(sums, Dv, target, step.q_dtype)
    store_scalar_float32(step.lse + 4 * row, np.float32(largest + math.log(whole)))


@inlined
def _add_bases(step, b, h, first, others, sums):
    """Add both bases of a head, with the weights of the tokens that have them."""
    bases, Dv = step.bases + b * step.bases_b + h * step.bases_h, step.Dv
    for d in range(0, Dv, LANES):
        y = load_first_lanes(bases + 4 * d, FLOAT32, Dv - d) * to_all(first)
        y += load_first_lanes(bases + 4 * (Dv + d), FLOAT32, Dv - d) * to_all(others)
        store_float32(sums + 4 * d, load_float32(sums + 4 * d) + y)


@inlined
def _sum_seen(step, b, h, visible, sums, row):
    """The sum of the first `visible` values of a head: that of all, less those of later tokens.

    Zeros if visible is 0: without a rest, the sum may be infinite.
    """
    Dv = step.Dv
    total = step.total + 4 * Dv * (b * step.H_kv + h)
    for d in range(Dv):
        x = load_scalar_float32(total + 4 * d) if visible > 0 else np.float32(0)
        store_scalar_float32(sums + 4 * d, x)
    values = step.v + b * step.v_b + h * step.v_h
    for token in range(visible, length_of(step, b) if visible > 0 else 0):
        widen_row(values + step.v_s * token, step.kv_dtype, Dv, row)
        for d in range(Dv):
            left = load_scalar_float32(sums + 4 * d) - load_scalar_float32(row + 4 * d)
            store_scalar_float32(sums + 4 * d, left)
