"""Attention to all tokens in three tiers: exact, by codes, and the rest together."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numpy.typing import NDArray

from adamas_core.reference.center import FINE_NOISE, NOISE
from adamas_core.reference.layout import TILE, Codes, Selection, Values

from ._array import FLOAT32, LINE, address_of
from ._exp import exp
from ._float_rows import LANES, item_bytes, load_first_lanes, narrow_row, widen_row
from ._jit import inlined, opaque, outlined
from ._queries import forced_of, keep_by_products, length_of, locate, part_of, store_indices
from ._scratch import TOTAL, UNIT, layout_of, sought
from ._simd import (
    I1,
    I16,
    I64,
    F32x16,
    constant,
    count_bits,
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
    store,
    store_float32,
    store_float64,
    store_int32,
    store_int64,
    store_scalar_float32,
    store_uint8,
    store_uint32,
    sum_of,
    to_all,
)
from ._step import step_at
from ._visible import visible_tokens
from ._weights import HIGHEST, LEAST, LOG2_E, weights_of_ranks
from .attend import attention_fields
from .center import load_mean, load_scale
from .estimate import gathered, least_of, on_mean, prepare_estimates, rank_of, weigh_again
from .hadamard import scratch_floats, transform
from .rerank import MASK_RANKS, keep_best
from .score import table_bytes
from .select import attend_topk, run_step

CHOSEN = 1024  # tokens whose weights are added up at a time
AHEAD = 8  # coded tokens asked for before they are read
LEAST_UNIT = np.float32(2.0**-100)  # products above it have all their bits
MOST_ON_MEAN = np.float32(2.0**20)  # half of the last bit of a sum is 1/8 below 2^21


def attend_tail(
    q: NDArray,
    k: NDArray,
    v: NDArray,
    codes: Codes,
    values: Values,
    budget: int,
    selection: Selection,
    scale: float | None = None,
) -> tuple[NDArray, NDArray[np.float32]]:
    """Attention of q (B, H, L, D) to all visible tokens of k, v (B, H_kv, S, D): out and lse."""
    tail = min(selection.tail, k.shape[2])
    if tail == 0:
        return attend_topk(q, k, v, codes, budget, selection, scale)
    whole = np.empty(q.shape, q.dtype)
    lse = np.empty(q.shape[:3], np.float32)
    if lse.size:
        rows = lse.size
        exact = np.empty(q.shape, np.float32)
        indices = np.empty((*q.shape[:3], budget), np.int32)
        room = max(budget + tail, selection.refine * budget) + MASK_RANKS
        coded = np.empty((2, rows, room), np.int32)
        counts = np.empty(rows, np.int64)
        rest = np.empty((rows, 2))
        total = np.ascontiguousarray(values.total)
        _, values_b, values_h = values.planes.strides[:3]
        means, scales, _ = values.centers
        third, finer = codes.fine  # type: ignore[misc]
        fields: dict[str, float] = {
            **attention_fields(k, v, scale, exact, lse),
            "out_dtype": FLOAT32,
            "choose": choose_tail.address,
            "tail": tail,
            "add_tail": add_tail.address,
            "third": address_of(third),
            "third_b": third.strides[0],
            "third_h": third.strides[1],
            "finer": address_of(finer),
            "finer_b": finer.strides[0],
            "finer_h": finer.strides[1],
            "v_codes": address_of(values.planes),
            "v_codes_b": values_b,
            "v_codes_h": values_h,
            "v_means": address_of(means),
            "v_means_b": means.strides[0],
            "v_means_h": means.strides[1],
            "v_scales": address_of(scales),
            "v_scales_b": scales.strides[0],
            "v_scales_h": scales.strides[1],
            "total": address_of(total),
            "whole_out": address_of(whole),
            "rest": address_of(rest),
            "coded": address_of(coded[0]),
            "coded_room": room,
            "coded_ranks": address_of(coded[1]),
            "coded_counts": address_of(counts),
        }
        run_step(q, codes, indices, selection, selection.refine * budget, fields)
    return whole, lse


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
    prepare_estimates(step, layout, scratch, row, 0)
    _rank_by_three_bits(step, layout, scratch, row, own, ranks, count, fine)
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
    for i in range(count):
        token, rank = load_int32(own + 4 * i), load_uint32(ranks + 4 * i)
        if next_exact < n and load_int32(exact + 4 * next_exact) == token:
            store_uint32(exact_ranks + 4 * next_exact, rank)
            next_exact += 1
        else:
            store_int32(coded + 4 * others, token)
            store_uint32(fine + 4 * others, load_uint32(fine + 4 * i))
            store_uint32(ranks + 4 * others, rank)
            others += 1
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


@outlined
def _rank_by_three_bits(step, layout, scratch, row, tokens, ranks, n, target):
    """The ranks of n tokens by estimates from three bits, from their ranks by two.

    An estimate of two bits is n s unit + the product with the mean, so n is found again from it: an
    integer of at most 2^18. In units of s unit, the rounding errors stay below 1/4 up to
    MOST_ON_MEAN. Else n is counted again.
    """
    b, h, _, _ = locate(step, row)
    P, Dt, weights = step.P, step.Dt, step.weights
    means = step.means + b * step.means_b + h * step.means_h
    scales = step.scales + b * step.scales_b + h * step.scales_h
    third = step.third + b * step.third_b + h * step.third_h
    finer = step.finer + b * step.finer_b + h * step.finer_h
    planes = step.planes + b * step.planes_b + h * step.planes_h
    words = scratch + layout.queries + table_bytes(P, weights)
    x = scratch + layout.x
    unit = load_scalar_float32(scratch + layout.terms + UNIT)
    W = np.int64(load_scalar_float32(scratch + layout.terms + TOTAL)) // 3
    tile, on_tile = np.int64(-1), np.float32(0)
    for i in range(n):
        token = np.int64(load_int32(tokens + 4 * i))
        prefetch(third + 8 * P * np.int64(load_int32(tokens + 4 * min(i + AHEAD, n - 1))))
        if token // TILE != tile:
            tile = token // TILE
            on_tile = on_mean(x, means + 2 * Dt * tile, Dt)
        one = load_scale(scales + token) * unit
        away = least_of(np.int64(load_uint32(ranks + 4 * i))) - on_tile
        if one >= LEAST_UNIT and abs(on_tile) <= MOST_ON_MEAN * one and abs(away) < np.inf:
            two = np.int64(np.rint(away / one))
        else:
            at = planes + 64 * P * (token // 8) + 8 * (token % 8)
            two = 3 * W - 2 * _distance(words, at, step.to_low, P, weights)
        N = _on_third_bits(words, third + 8 * P * token, P, weights) - W
        y = np.float32(2 * two + N) * load_scale(finer + token)
        estimate = y * (unit / np.float32(2)) + on_tile
        store_uint32(target + 4 * i, rank_of(estimate))


@inlined
def _on_third_bits(words, third, P, weights):
    """Twice the sum of the query's weights over the coordinates with the sign of the third bit."""
    total = 0
    for plane in range(1, weights + 1):
        total *= 2
        for p in range(P):
            differ = load_uint64(words + 8 * p) ^ load_uint64(third + 8 * p)
            total += count_bits(load_uint64(words + 8 * (plane * P + p)) & ~differ)
    return 2 * total


@inlined
def _distance(words, high, to_low, P, weights):
    """The distance of one token, whose first words are at `high` and to_low after it."""
    total = 0
    for plane in range(1, weights + 1):
        total *= 2
        for p in range(P):
            sign = load_uint64(words + 8 * p)
            weight = load_uint64(words + 8 * (plane * P + p))
            total += 2 * count_bits(weight & (sign ^ load_uint64(high + 64 * p)))
            total += count_bits(weight & (sign ^ load_uint64(high + to_low + 64 * p)))
    return total


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


@inlined
def logit_of(step, rank, scale, noise):
    """The logit of a token with an estimate of this rank."""
    s = np.float64(load_scale(scale))
    return step.scale * np.float64(least_of(np.int64(rank))) - noise * s * s


@outlined
def _weigh_rest(step, layout, scratch, row, exact, coded, competing):
    """The shift and the sum of weights of the tokens that neither tier has.

    That is the sum over all that compete, less those of the chosen ones. All are weighed again if
    the shifts were guessed too low (then a token that is not chosen may have been cut at HIGHEST)
    or too high (then weights were lost).
    """
    to = step.rest + 16 * row
    store_float64(to, 0.0)
    store_float64(to + 8, 0.0)
    if competing <= exact + coded:
        return
    b, h, _, _ = locate(step, row)
    head = b * step.H_kv + h
    scales = step.scales + b * step.scales_b + h * step.scales_h
    noise = noise_of(step, row, scratch + layout.x)
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
    splits = step.splits
    too_high = largest < 2.0**30 * LEAST  # the noise takes the logits far below the estimates
    if too_high or step.scale * np.float64(least_of(np.int64(worst))) - lowest > HIGHEST:
        weigh_again(step, layout, scratch, row)
        shift, splits = load_float64(sums), 1
    mass = 0.0
    for split in range(splits):
        one = load_float64(sums + 16 * split)
        if one == -np.inf:
            continue
        own = load_float64(sums + 16 * split + 8)
        part = part_of(step, head, split)
        start, end = (part.start, part.end) if splits > 1 else (0, length_of(step, b))
        for tier in range(2):
            own -= _sum_chosen(
                step, layout, scratch, lists[tier], ranks[tier], coded if tier else exact,
                (start, end), (scales, noise), one,
            )  # fmt: skip
        mass += max(own, 0.0) * math.exp(one - shift)
    store_float64(to, shift)
    store_float64(to + 8, mass)


@outlined
def _sum_chosen(step, layout, scratch, tokens, ranks, n, part, of_keys, shift):
    """The sum of the weights of those of n chosen tokens that lie in a part, start .. end.

    `of_keys` is the address of the tokens' scales, and their noise. Distances are free by now.
    """
    (start, end), (scales, noise) = part, of_keys
    own_ranks = scratch + layout.distances
    own_scales = own_ranks + 4 * CHOSEN
    slope, less = np.float32(step.scale) * LOG2_E, np.float32(-noise) * LOG2_E
    total = 0.0
    for first in range(0, n, CHOSEN):
        count = 0
        for i in range(first, min(first + CHOSEN, n)):
            token = load_int32(tokens + 4 * i)
            store_uint32(own_ranks + 4 * count, load_uint32(ranks + 4 * i))
            store_uint8(own_scales + count, load_uint8(scales + token))
            count += (start <= token) & (token < end)
        sums = to_all(np.float32(0))
        for i in range(0, count, LANES):
            at = own_ranks + 4 * i, own_scales + i
            sums += weights_of_ranks(*at, slope, less, np.float32(-shift) * LOG2_E, count - i)
        total += np.float64(sum_of(sums))
    return total


# ---- the sum of three tiers --------------------------------------------------------------------


def _sum_block(vectors: int) -> Any:
    """The weighted sum over tokens of up to 64 coordinates: those of one word, in registers."""

    @operation(types.void, *[types.int64] * 6)
    def sum_block(
        builder: Any, tokens: Any, n: Any, scaled: Any, words: Any, P: Any, sums: Any
    ) -> None:
        """sums (16 * vectors,) = sum of scaled[i] code_i, in float32.

        `words` is the address of token 0. The words of a token are P high ones, then P low ones.
        """
        vector = F32x16.ir
        zero = constant(vector, 0.0)
        totals = [cgutils.alloca_once_value(builder, zero) for _ in range(vectors)]
        last = builder.sub(n, I64(1))
        to_low, row = builder.mul(P, I64(8)), builder.mul(P, I64(16))

        def at(i: Any) -> Any:
            token = load_int32(builder, builder.add(tokens, builder.mul(i, I64(4))))
            return builder.add(words, builder.mul(builder.zext(token, I64), row))

        with cgutils.for_range(builder, n) as loop:
            ahead = builder.add(loop.index, I64(AHEAD))
            ahead = builder.select(builder.icmp_signed("<", ahead, last), ahead, last)
            prefetch(builder, at(ahead))
            word = at(loop.index)
            offset = builder.add(scaled, builder.mul(loop.index, I64(4)))
            share = splat(builder, vector, load_scalar_float32(builder, offset))
            planes = (
                (load_uint64(builder, word), builder.fadd(share, share)),
                (load_uint64(builder, builder.add(word, to_low)), share),
            )
            for v, total in enumerate(totals):
                y = builder.load(total)
                for bits, part in planes:
                    lanes = builder.trunc(builder.lshr(bits, I64(16 * v)), I16)
                    mask = builder.bitcast(lanes, ir.VectorType(I1, 16))
                    y = builder.fadd(y, builder.select(mask, part, zero))
                builder.store(y, total)
        for v, total in enumerate(totals):
            store(builder, builder.add(sums, I64(64 * v)), builder.load(total))

    return sum_block


sum_block1, sum_block2, sum_block4 = map(_sum_block, (1, 2, 4))


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
    D, Dt = step.D, step.Dt
    length = length_of(step, b)
    visible = visible_tokens(length, step.L, l)
    out = step.out + 4 * D * row
    target = step.whole_out + item_bytes(step.q_dtype) * D * row
    if visible <= 0:
        narrow_row(out, D, target, step.q_dtype)
        return
    sums = scratch
    back = sums + 4 * scratch_floats(Dt)
    weights = back + 4 * scratch_floats(Dt)
    n = load_int64(step.coded_counts + 8 * row)
    scaled = weights + 4 * (max(step.tail, scratch_floats(Dt)) + LINE)
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
    for i in range(n):
        token = load_int32(tokens + 4 * i)
        logit = logit_of(step, load_uint32(ranks + 4 * i), key_scales + token, noise)
        store_scalar_float32(weights + 4 * i, np.float32(logit))
        largest = max(largest, logit)
    for i in range(n, n + LANES):
        store_scalar_float32(weights + 4 * i, np.float32(-np.inf))
    mass = to_all(np.float32(0))
    for i in range(0, n, LANES):
        share = exp(load_float32(weights + 4 * i) - to_all(np.float32(largest)))
        store_float32(weights + 4 * i, share)
        mass += share
    _sum_codes(step, b, h, tokens, n, weights, scaled, sums)
    transform(sums, FLOAT32, Dt, Dt, back)
    exact = math.exp(lse - largest)
    rest *= math.exp(shift - largest) if rest > 0 else 0.0
    whole = exact + np.float64(sum_of(mass)) + rest
    mean = step.total + 4 * D * (b * step.H_kv + h)
    for d in range(D):
        store_scalar_float32(sums + 4 * d, load_scalar_float32(mean + 4 * d))
    values = step.v + b * step.v_b + h * step.v_h
    for token in range(visible, length):  # later ones than the query
        widen_row(values + step.v_s * token, step.kv_dtype, D, weights)
        for d in range(D):
            left = load_scalar_float32(sums + 4 * d) - load_scalar_float32(weights + 4 * d)
            store_scalar_float32(sums + 4 * d, left)
    for d in range(0, D, LANES):
        y = load_first_lanes(out + 4 * d, FLOAT32, D - d) * to_all(np.float32(exact / whole))
        y += load_float32(back + 4 * d) * to_all(np.float32(1 / whole))
        y += load_float32(sums + 4 * d) * to_all(np.float32(rest / whole / visible))
        store_float32(sums + 4 * d, y)
    narrow_row(sums, D, target, step.q_dtype)
    store_scalar_float32(step.lse + 4 * row, np.float32(largest + math.log(whole)))


@inlined
def _sum_codes(step, b, h, tokens, n, weights, scaled, sums):
    """sums (Dt,) = the weighted sum of the transformed values that codes stand for."""
    P, Dt = step.P, step.Dt
    codes = step.v_codes + b * step.v_codes_b + h * step.v_codes_h
    scales = step.v_scales + b * step.v_scales_b + h * step.v_scales_h
    means = step.v_means + b * step.v_means_b + h * step.v_means_h
    along = np.float32(0)  # 1.5 times this is in all sums, because a code stands for u + 1.5
    for i in range(n):
        scale = load_scale(scales + np.int64(load_int32(tokens + 4 * i)))
        share = load_scalar_float32(weights + 4 * i) * scale
        store_scalar_float32(scaled + 4 * i, share)
        along += share
    if Dt <= 16:
        sum_block1(tokens, n, scaled, codes, P, sums)
    elif Dt == 32:
        sum_block2(tokens, n, scaled, codes, P, sums)
    else:
        for p in range(P):
            sum_block4(tokens, n, scaled, codes + 8 * p, P, sums + 256 * p)
    for d in range(0, Dt, LANES):
        y = load_float32(sums + 4 * d) - to_all(np.float32(1.5) * along)
        store_float32(sums + 4 * d, y)
    # Tokens come newest first, so those of a tile follow each other.
    first = 0
    while first < n:
        tile = np.int64(load_int32(tokens + 4 * first)) // TILE
        share = np.float32(0)
        while first < n and np.int64(load_int32(tokens + 4 * first)) // TILE == tile:
            share += load_scalar_float32(weights + 4 * first)
            first += 1
        mean = means + 2 * Dt * tile
        if first < n:
            later = means + 2 * Dt * (np.int64(load_int32(tokens + 4 * first)) // TILE)
            for at in range(0, 2 * Dt, LINE):
                prefetch(later + at)
        for d in range(0, Dt, LANES):
            y = load_float32(sums + 4 * d) + to_all(share) * load_mean(mean + 2 * d, Dt - d)
            store_float32(sums + 4 * d, y)
