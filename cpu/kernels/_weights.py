"""The sum of the estimated weights of all tokens, made in the pass over their distances.

A token has the logit a = scale e - noise s^2, with e its estimate and s its scale. With a soft cap
c it is c tanh(a / c) instead. Its weight is exp(a - shift). The shift is a logit near the worst of
the tokens that are chosen. Tokens far above it are chosen themselves, and taken out of the sum
afterwards. So their weights are cut at exp(HIGHEST), and do not hide the others.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from llvmlite import ir
from numba.core import cgutils, types

from adamas_core.reference.center import NOISE
from adamas_core.reference.layout import TILE

from ._cap import capped
from ._float_rows import LANES
from ._jit import inlined, outlined
from ._scratch import CHUNK, END, FIRST, ROWS, STATE_FIELDS, TOTAL, UNIT, weights_of
from ._simd import (
    AVX512,
    F32,
    I1,
    I16,
    I32,
    I64,
    F32x16,
    I32x16,
    call,
    constant,
    first_lanes,
    join_masks,
    larger_number,
    largest_of,
    load,
    load_float32,
    load_float64,
    load_int64,
    load_scalar_float32,
    load_uint16_as_float,
    load_uint64,
    multiply_add,
    operation,
    splat,
    store,
    store_float32,
    store_float64,
    store_scalar_float32,
    store_uint64,
    sum_of,
    to_all,
)
from .center import load_scales

HIGHEST = 8.0  # nats above the shift
LEAST = 2.0**-120  # smaller weights may be 0, which is no loss for a sum above 2^30 LEAST
LOG2_E = np.float32(1 / math.log(2))
LARGEST_CAP = 2e38

# 2^r for 0 <= r < 1, to 2^-18 relative. The weights have that error as well.
_POWERS = np.polynomial.chebyshev.Chebyshev.interpolate(np.exp2, 4, [0, 1])
_COEFFICIENTS = [float(c) for c in _POWERS.convert(kind=np.polynomial.Polynomial).coef]

_layout: Any = weights_of
_FIELDS = _layout.py_func(0)  # positions of the fields, from the start


@operation(F32x16, F32x16)
def power_of_two(builder: Any, x: Any) -> Any:
    """2^x in each lane, to 2^-18 relative. x is cut at HIGHEST / ln 2, and NaN counts as that.

    A result below LEAST may be 0.
    """
    highest = constant(x.type, HIGHEST / math.log(2))
    x = builder.select(builder.fcmp_ordered("<", x, highest), x, highest)
    return _power_by_avx512(builder, x) if AVX512 else _power_by_bits(builder, x)


def _power_by_avx512(builder: Any, x: Any) -> Any:
    rest, all_lanes, round_ = ir.Constant(x.type, None), I16(-1), I32(4)  # as the CPU is set
    name, down = "llvm.x86.avx512.mask.reduce.ps.512", I32(1)
    fraction = call(builder, name, x.type, x, down, rest, all_lanes, round_)
    power = _power_of_fraction(builder, fraction)
    name = "llvm.x86.avx512.mask.scalef.ps.512"
    return call(builder, name, x.type, power, x, rest, all_lanes, round_)


def _power_by_bits(builder: Any, x: Any) -> Any:
    zero = constant(x.type, 0.0)
    lost = builder.fcmp_ordered("<", x, constant(x.type, math.log2(LEAST)))
    x = builder.select(lost, zero, x)
    whole = call(builder, "llvm.floor.v16f32", x.type, x)
    power = _power_of_fraction(builder, builder.fsub(x, whole))
    exponent = builder.shl(builder.fptosi(whole, I32x16), constant(I32x16, 23))
    power = builder.bitcast(builder.add(builder.bitcast(power, I32x16), exponent), x.type)
    return builder.select(lost, zero, power)


def _power_of_fraction(builder: Any, r: Any) -> Any:
    y = constant(r.type, _COEFFICIENTS[-1])
    for coefficient in reversed(_COEFFICIENTS[:-1]):
        y = multiply_add(builder, y, r, constant(r.type, coefficient))
    return y


def _of_row(builder: Any, numbers: Any, row: Any) -> Any:
    """The row's number of an array of float32, in all lanes."""
    at = builder.add(numbers, builder.mul(row, I64(4)))
    return splat(builder, F32x16.ir, load_scalar_float32(builder, at))


def _for_rows(
    builder: Any, tile: Sequence[Any], rows: Any, use: Callable[..., Any], with_cap: bool = False
) -> None:
    """Compute n s / 2 and the logits, in units of ln 2, of a tile's tokens for each of some rows.

    `tile` has the first five arguments of the operations below. `use(row, sums, products, logits)`
    emits the rest. It returns the new sixteen sums of the row. The shift is in the bases. With a
    cap it is not, and is taken from the capped logits.
    """
    distances, stride, scales, weights, bases = tile
    factors = [load_scales(builder, builder.add(scales, I64(16 * i))) for i in range(4)]
    squares = [builder.fmul(factor, factor) for factor in factors]
    vector = F32x16.ir
    cap = load_scalar_float32(builder, builder.add(weights, I64(_FIELDS.cap))) if with_cap else None
    with cgutils.for_range(builder, rows) as loop:
        half, factor, noise = (
            _of_row(builder, builder.add(weights, I64(at)), loop.index)
            for at in (_FIELDS.halves, _FIELDS.factors, _FIELDS.noises)
        )
        base = _of_row(builder, bases, loop.index)
        own = builder.add(distances, builder.mul(stride, loop.index))
        products, logits = [], []
        for i, (s, square) in enumerate(zip(factors, squares, strict=True)):
            d = load_uint16_as_float(builder, builder.add(own, I64(32 * i)))
            products.append(builder.fmul(builder.fsub(half, d), s))
            rest = multiply_add(builder, square, noise, base)
            logits.append(multiply_add(builder, products[-1], factor, rest))
        if with_cap:
            start = _of_row(builder, builder.add(weights, I64(_FIELDS.starts)), loop.index)
            logits = [builder.fadd(capped(builder, logit, cap), start) for logit in logits]
        at = builder.add(weights, I64(_FIELDS.sums))
        at = builder.add(at, builder.mul(loop.index, I64(64)))
        store(builder, at, use(loop.index, load(builder, at, vector), products, logits))


def _competing(builder: Any, weights: Any, row: Any) -> list[Any]:
    """Which of a tile's tokens compete for a place of a row: four masks of sixteen lanes."""
    at = builder.add(weights, I64(_FIELDS.competing))
    word = load_uint64(builder, builder.add(at, builder.mul(row, I64(8))))
    parts = (builder.trunc(builder.lshr(word, I64(16 * i)), I16) for i in range(4))
    return [builder.bitcast(part, ir.VectorType(I1, 16)) for part in parts]


def _over_tile(with_cap: bool) -> tuple[Any, Any]:
    """`find_largest` and `add_weights`, for logits without a cap or with one.

    The arguments of both are distances, stride, scales, weights, bases and rows. `stride` is in
    bytes, between the distances of two rows, and `weights` is the start of the rows' weights.
    """

    @operation(types.void, *[types.int64] * 6)
    def find_largest(builder: Any, *arguments: Any) -> None:
        """For some rows, the largest logit of a tile's tokens that compete, and of the sums."""
        *tile, rows = arguments
        lowest = constant(F32x16.ir, float("-inf"))

        def use(row: Any, sums: Any, products: Any, logits: Any) -> Any:
            competing = _competing(builder, tile[3], row)
            for mask, logit in zip(competing, logits, strict=True):
                sums = larger_number(builder, sums, builder.select(mask, logit, lowest))
            return sums

        _for_rows(builder, tile, rows, use, with_cap)

    @operation(types.void, *[types.int64] * 6)
    def add_weights(builder: Any, *arguments: Any) -> None:
        """For some rows, add the weights of a tile's tokens that compete."""
        *tile, rows = arguments
        zero = constant(F32x16.ir, 0.0)

        def use(row: Any, sums: Any, products: Any, logits: Any) -> Any:
            competing = _competing(builder, tile[3], row)
            for mask, logit in zip(competing, logits, strict=True):
                weight = builder.select(mask, power_of_two(builder, logit), zero)
                sums = builder.fadd(sums, weight)
            return sums

        _for_rows(builder, tile, rows, use, with_cap)

    return find_largest, add_weights


_find_largest, _add_weights = _over_tile(with_cap=False)
_find_largest_capped, _add_weights_capped = _over_tile(with_cap=True)


@operation(types.void, *[types.int64] * 8)
def add_and_test(builder: Any, *arguments: Any) -> None:
    """The weights and `find_promising` in one, for a tile whose tokens all compete; without a cap.

    The arguments are those of `_over_tile`, and the addresses of limits and masks.
    """
    *tile, rows, limits, masks = arguments

    def use(row: Any, sums: Any, products: Any, logits: Any) -> Any:
        limit = _of_row(builder, limits, row)
        tests = [builder.fcmp_unordered(">=", product, limit) for product in products]
        at = builder.add(masks, builder.mul(row, I64(8)))
        store_uint64(builder, at, join_masks(builder, tests))
        a, b, c, d = (power_of_two(builder, logit) for logit in logits)
        return builder.fadd(sums, builder.fadd(builder.fadd(a, b), builder.fadd(c, d)))

    _for_rows(builder, tile, rows, use)


@operation(F32x16, types.int64)
def load_estimates(builder: Any, ranks: Any) -> Any:
    """The estimates of sixteen ranks."""
    word = load(builder, ranks, I32x16)
    positive = builder.icmp_signed(">=", word, constant(I32x16, 0))
    upside_down = builder.xor(word, constant(I32x16, 0x7FFFFFFF))
    return builder.bitcast(builder.select(positive, upside_down, word), F32x16.ir)


@operation(F32x16, types.int64, types.int64, *[types.float32] * 3, types.int64)
def weights_of_ranks(
    builder: Any, ranks: Any, scales: Any, slope: Any, noise: Any, start: Any, count: Any
) -> Any:
    """The weights of up to sixteen tokens, of which there are `count`; 0 in the other lanes.

    `ranks` is the address of their ranks, and `scales` that of the bytes of their scales. Memory
    of sixteen is read. The numbers are a row's slope, its noise and its start.
    """
    return _first_powers(builder, _of_ranks(builder, ranks, scales, slope, noise, start), count)


@operation(F32x16, types.int64, types.int64, *[types.float32] * 3, types.int64, types.float32)
def capped_weights_of_ranks(
    builder: Any, ranks: Any, scales: Any, slope: Any, noise: Any, start: Any, count: Any, cap: Any
) -> Any:
    """As `weights_of_ranks`, with a cap in units of ln 2."""
    logits = capped(builder, _of_ranks(builder, ranks, scales, slope, noise, F32(0)), cap)
    return _first_powers(builder, builder.fadd(logits, splat(builder, F32x16.ir, start)), count)


def _of_ranks(builder: Any, ranks: Any, scales: Any, slope: Any, noise: Any, start: Any) -> Any:
    """The logits of sixteen ranks, in units of ln 2."""
    vector = F32x16.ir
    estimate = load_estimates(builder, ranks)
    slope, noise, start = (splat(builder, vector, x) for x in (slope, noise, start))
    s = load_scales(builder, scales)
    rest = multiply_add(builder, builder.fmul(s, s), noise, start)
    return multiply_add(builder, estimate, slope, rest)


def _first_powers(builder: Any, logits: Any, count: Any) -> Any:
    vector = F32x16.ir
    weight = power_of_two(builder, logits)
    return builder.select(first_lanes(builder, vector, count), weight, constant(vector, 0.0))


@inlined
def begin_weights(step, weights, i, terms, x):
    """The constants of row i, whose transformed query is x. Nothing has been added up."""
    squares = to_all(np.float32(0))
    for d in range(0, step.Dt, LANES):
        y = load_float32(x + 4 * d)
        squares += y * y
    scale = np.float32(step.scale)
    noise = scale * scale * sum_of(squares) * np.float32(-0.5 * NOISE)
    slope, twice = scale * LOG2_E, np.float32(2)
    total, unit = load_scalar_float32(terms + TOTAL), load_scalar_float32(terms + UNIT)
    store_scalar_float32(weights.halves + 4 * i, total / twice)
    store_scalar_float32(weights.factors + 4 * i, slope * (twice * unit))
    store_scalar_float32(weights.noises + 4 * i, noise * LOG2_E)
    for lane in (i, i + ROWS):
        store_scalar_float32(weights.slopes + 4 * lane, slope)
    set_shift(weights, i, -np.inf)
    store_float64(weights.masses + 8 * i, 0.0)
    store_scalar_float32(weights.cap, cap_in_bits(step.soft_cap))


@inlined
def cap_in_bits(c):
    """The cap c, in units of ln 2; 0 where there is none. A larger one would be infinite."""
    return np.float32(min(c, LARGEST_CAP)) * LOG2_E


@inlined
def has_cap(weights):
    return load_scalar_float32(weights.cap) > 0


@inlined
def set_shift(weights, i, shift):
    """The logit, in nats, whose weight is 1."""
    store_float64(weights.shifts + 8 * i, shift)
    start = np.float32(0) if shift == -np.inf else np.float32(-shift) * LOG2_E
    for lane in (i, i + ROWS):
        store_scalar_float32(weights.starts + 4 * lane, start)


@inlined
def begin_sums(weights, on_means, tokens, rows, empty):
    """The bases of a chunk's tiles, and sums that hold `empty`."""
    slope, start = load_float32(weights.slopes), load_float32(weights.starts)
    if has_cap(weights):
        start = to_all(np.float32(0))
    for pair in range(0, tokens, 2 * TILE):
        at = 4 * ROWS * (pair // TILE)
        base = multiply_add(load_float32(on_means + at), slope, start)
        store_float32(weights.bases + at, base)
    for i in range(rows):
        store_float32(weights.sums + 64 * i, to_all(empty))


@inlined
def end_sums(weights, rows):
    """Add the sums of a chunk to those of the chunks before it."""
    for i in range(rows):
        sum_ = np.float64(sum_of(load_float32(weights.sums + 64 * i)))
        store_float64(weights.masses + 8 * i, load_float64(weights.masses + 8 * i) + sum_)


@inlined
def add_tile(weights, distances, scales, bases, rows):
    """Add the weights of a tile's tokens that compete."""
    if has_cap(weights):
        _add_weights_capped(distances, 2 * CHUNK, scales, weights.start, bases, rows)
    else:
        _add_weights(distances, 2 * CHUNK, scales, weights.start, bases, rows)


@outlined
def weigh_chunk(weights, distances, scales, on_means, state, chunk, chunk_end, rows, left_out=0):
    """Add up the weights of a chunk that has been scored, whose first token is `chunk`.

    `state` is the address of the rows' states. The shifts first rise to the largest logit. If
    `left_out` is not 0, it is the address of a bit per token, and tokens whose bit is 1 are left
    out.
    """
    begin_sums(weights, on_means, chunk_end - chunk, rows, np.float32(-np.inf))
    for tile in range(chunk, chunk_end, TILE):
        at = tile - chunk
        bases = weights.bases + 4 * ROWS * (at // TILE)
        mark_competing(weights, state, tile, rows, left_out)
        place = distances + 2 * at, 2 * CHUNK, scales + at, weights.start, bases, rows
        if has_cap(weights):
            _find_largest_capped(*place)
        else:
            _find_largest(*place)
    for i in range(rows):
        largest = largest_of(load_float32(weights.sums + 64 * i))
        _raise_shift(weights, i, np.float64(largest) * math.log(2))
    begin_sums(weights, on_means, chunk_end - chunk, rows, np.float32(0))
    for tile in range(chunk, chunk_end, TILE):
        at = tile - chunk
        bases = weights.bases + 4 * ROWS * (at // TILE)
        mark_competing(weights, state, tile, rows, left_out)
        add_tile(weights, distances + 2 * at, scales + at, bases, rows)
    end_sums(weights, rows)


@inlined
def competing_for_all(state, rows):
    """The tokens first .. end compete for places of all rows."""
    first, end = load_int64(state + 8 * FIRST), load_int64(state + 8 * END)
    for i in range(1, rows):
        own = state + 8 * STATE_FIELDS * i
        first = max(first, load_int64(own + 8 * FIRST))
        end = min(end, load_int64(own + 8 * END))
    return first, end


@inlined
def mark_competing(weights, state, tile, rows, left_out=0):
    """Store which tokens of a tile, whose first token is `tile`, compete for places of each row."""
    others = ~load_uint64(left_out + tile // 8) if left_out != 0 else ~np.uint64(0)
    for i in range(rows):
        own = state + 8 * STATE_FIELDS * i
        first = min(max(load_int64(own + 8 * FIRST) - tile, 0), TILE)
        end = min(max(load_int64(own + 8 * END) - tile, first), TILE)
        store_uint64(weights.competing + 8 * i, _bits_between(first, end) & others)


@inlined
def _bits_between(first, end):
    """A mask of the bits first .. end - 1, 0 <= first <= end <= 64."""
    below = ~np.uint64(0) if end >= TILE else (np.uint64(1) << np.uint64(end)) - np.uint64(1)
    return np.uint64(0) if first >= TILE else below >> np.uint64(first) << np.uint64(first)


@inlined
def _raise_shift(weights, i, above):
    """Let the shift of row i be at least `above` nats over the present one, or over 0 if unset."""
    shift = load_float64(weights.shifts + 8 * i)
    if shift == -np.inf:
        if above > -np.inf:
            set_shift(weights, i, above)
    elif above > 0:
        set_shift(weights, i, shift + above)
        mass = load_float64(weights.masses + 8 * i) * math.exp(-above)
        store_float64(weights.masses + 8 * i, mass)
