"""The sum of the estimated weights of all tokens, made in the pass over their distances.

A token has the logit a = scale e - noise s^2, with e its estimate and s its scale. Its weight is
exp(a - shift). The shift is a logit near the worst of the tokens that are chosen. Tokens far above
it are chosen themselves, and taken out of the sum afterwards. So their weights are cut at
exp(HIGHEST), and do not hide the others.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from llvmlite import ir
from numba.core import cgutils, types

from adamas_core.reference.center import NOISE
from adamas_core.reference.layout import TILE

from ._float_rows import LANES
from ._jit import inlined, outlined
from ._scratch import CHUNK, END, FIRST, ROWS, STATE_FIELDS, TOTAL, UNIT, weights_of
from ._simd import (
    I1,
    I16,
    I64,
    F32x16,
    I32x16,
    constant,
    larger_number,
    largest_of,
    load,
    load_float32,
    load_float64,
    load_int64,
    load_scalar_float32,
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
LEAST = 2.0**-120  # smaller weights are 0, which is no loss for a sum above 2^30 LEAST
LOG2_E = np.float32(1 / math.log(2))

# 2^r for |r| <= 1/2, to 2^-22 relative.
_POWERS = np.polynomial.chebyshev.Chebyshev.interpolate(np.exp2, 5, [-0.5, 0.5])
_COEFFICIENTS = [float(c) for c in _POWERS.convert(kind=np.polynomial.Polynomial).coef]


_layout: Any = weights_of
_FIELDS = _layout.py_func(0)  # positions of the fields, from the start


def _power_of_two(builder: Any, x: Any) -> Any:
    """2^x in each lane; x is taken as at most HIGHEST / ln 2, and the result is 0 below LEAST."""
    vector = x.type
    highest, zero = constant(vector, HIGHEST / math.log(2)), constant(vector, 0.0)
    x = builder.select(builder.fcmp_ordered("<", x, highest), x, highest)
    lost = builder.fcmp_ordered("<", x, constant(vector, math.log2(LEAST)))
    x = builder.select(lost, zero, x)
    # Adding 1.5 * 2^23 leaves n, rounded, in the low bits of the sum.
    magic = constant(vector, 12582912.0)
    sum_ = builder.fadd(x, magic)
    n = builder.sub(builder.bitcast(sum_, I32x16), builder.bitcast(magic, I32x16))
    r = builder.fsub(x, builder.fsub(sum_, magic))
    y = constant(vector, _COEFFICIENTS[-1])
    for coefficient in reversed(_COEFFICIENTS[:-1]):
        y = multiply_add(builder, y, r, constant(vector, coefficient))
    exponent = builder.shl(n, constant(I32x16, 23))
    y = builder.bitcast(builder.add(builder.bitcast(y, I32x16), exponent), vector)
    return builder.select(lost, zero, y)


def _over_rows(add_up: Any) -> Any:
    """An operation that takes the logits of a tile's tokens of some rows, in units of ln 2.

    `add_up(builder, sums, logits, competing)` gives the new sixteen sums of a row.
    """

    def emit(
        builder: Any,
        distances: Any,
        stride: Any,
        scales: Any,
        on_means: Any,
        weights: Any,
        rows: Any,
    ) -> None:
        factors = [load_scales(builder, builder.add(scales, I64(16 * i))) for i in range(4)]
        squares = [builder.fmul(factor, factor) for factor in factors]
        vector = F32x16.ir

        with cgutils.for_range(builder, rows) as loop:
            four = builder.mul(loop.index, I64(4))

            def of_row(at: Any, four: Any = four) -> Any:
                x = load_scalar_float32(builder, builder.add(at, four))
                return splat(builder, vector, x)

            total, unit, slope, noise, start = (
                of_row(builder.add(weights, I64(at)))
                for at in (
                    _FIELDS.totals,
                    _FIELDS.units,
                    _FIELDS.slopes,
                    _FIELDS.noises,
                    _FIELDS.starts,
                )
            )
            mean = of_row(on_means)
            at = builder.add(weights, builder.mul(loop.index, I64(64)))
            sums_at = builder.add(at, I64(_FIELDS.sums))
            sums = load(builder, sums_at, vector)
            competing_at = builder.add(weights, builder.mul(loop.index, I64(8)))
            word = builder.load(
                builder.inttoptr(
                    builder.add(competing_at, I64(_FIELDS.competing)), I64.as_pointer()
                )
            )
            own = builder.add(distances, builder.mul(stride, loop.index))
            for i, (factor, square) in enumerate(zip(factors, squares, strict=True)):
                packed = load(builder, builder.add(own, I64(32 * i)), ir.VectorType(I16, 16))
                d = builder.uitofp(packed, vector)
                n = multiply_add(builder, constant(vector, -2.0), d, total)
                product = builder.fmul(builder.fmul(n, factor), unit)
                estimate = builder.fadd(product, mean)
                below = multiply_add(builder, square, noise, start)
                logit = multiply_add(builder, estimate, slope, below)
                bits = builder.trunc(builder.lshr(word, I64(16 * i)), I16)
                lanes = builder.bitcast(bits, ir.VectorType(I1, 16))
                sums = add_up(builder, sums, logit, lanes)
            store(builder, sums_at, sums)

    return emit


def _add(builder: Any, sums: Any, logits: Any, competing: Any) -> Any:
    weights = _power_of_two(builder, logits)
    zero = constant(weights.type, 0.0)
    return builder.fadd(sums, builder.select(competing, weights, zero))


def _larger(builder: Any, sums: Any, logits: Any, competing: Any) -> Any:
    lowest = constant(logits.type, float("-inf"))
    return larger_number(builder, sums, builder.select(competing, logits, lowest))


add_weights = operation(types.void, *[types.int64] * 6)(_over_rows(_add))
find_largest = operation(types.void, *[types.int64] * 6)(_over_rows(_larger))


@inlined
def begin_weights(step, weights, i, terms, x):
    """The constants of row i, whose transformed query is x. Nothing has been added up."""
    squares = to_all(np.float32(0))
    for d in range(0, step.Dt, LANES):
        y = load_float32(x + 4 * d)
        squares += y * y
    scale = np.float32(step.scale)
    noise = scale * scale * sum_of(squares) * np.float32(-0.5 * NOISE)
    store_scalar_float32(weights.totals + 4 * i, load_scalar_float32(terms + TOTAL))
    store_scalar_float32(weights.units + 4 * i, load_scalar_float32(terms + UNIT))
    store_scalar_float32(weights.slopes + 4 * i, scale * LOG2_E)
    store_scalar_float32(weights.noises + 4 * i, noise * LOG2_E)
    set_shift(weights, i, -np.inf)
    store_float64(weights.masses + 8 * i, 0.0)


@inlined
def set_shift(weights, i, shift):
    """The logit, in nats, whose weight is 1."""
    store_float64(weights.shifts + 8 * i, shift)
    start = np.float32(0) if shift == -np.inf else np.float32(-shift) * LOG2_E
    store_scalar_float32(weights.starts + 4 * i, start)


@outlined
def weigh_chunk(weights, distances, scales, on_means, state, chunk, chunk_end, rows, known):
    """Add up the weights of a chunk that has been scored, whose first token is `chunk`.

    `state` is the address of the rows' states. Unless the shifts are `known`, they first rise to
    the largest logit.
    """
    for adding in range(1 if known else 0, 2):
        empty = np.float32(0) if adding else np.float32(-np.inf)
        for i in range(rows):
            store_float32(weights.sums + 64 * i, to_all(empty))
        for tile in range(chunk, chunk_end, TILE):
            for i in range(rows):
                own = state + 8 * STATE_FIELDS * i
                first = min(max(load_int64(own + 8 * FIRST) - tile, 0), TILE)
                end = min(max(load_int64(own + 8 * END) - tile, first), TILE)
                store_uint64(weights.competing + 8 * i, _bits_between(first, end))
            at = tile - chunk
            products = on_means + 4 * ROWS * (at // TILE)
            if adding:
                add_weights(
                    distances + 2 * at, 2 * CHUNK, scales + at, products, weights.start, rows
                )
            else:
                find_largest(
                    distances + 2 * at, 2 * CHUNK, scales + at, products, weights.start, rows
                )
        for i in range(rows):
            sums = load_float32(weights.sums + 64 * i)
            if adding:
                mass = load_float64(weights.masses + 8 * i) + np.float64(sum_of(sums))
                store_float64(weights.masses + 8 * i, mass)
            else:
                _raise_shift(weights, i, np.float64(largest_of(sums)) * math.log(2))


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
