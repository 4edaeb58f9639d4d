"""The ranks of candidates by estimates from three bits, from their ranks by two.

An estimate of two bits is n s unit + the product with the mean, so n is found again from it: an
integer of at most 2^18. In units of s unit, the rounding errors stay below 1/4 up to MOST_ON_MEAN.
Else n is counted again.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba.core import types

from adamas_core.reference.layout import TILE

from ._float_rows import LANES
from ._jit import inlined, outlined
from ._queries import locate
from ._scratch import ROWS, TERMS_BYTES, TOTAL, UNIT, stay_prepared
from ._simd import (
    F32x16,
    call,
    constant,
    count_bits,
    first_lanes,
    highest_bit,
    load_float32,
    load_int32,
    load_scalar_float32,
    load_uint8,
    load_uint64,
    mask_bits,
    operation,
    prefetch,
    splat,
    store_scalar_float32,
    store_uint8,
    store_uint32,
)
from ._weights import load_estimates
from .center import load_scale, load_scales
from .estimate import on_mean, rank_of, store_ranks
from .hadamard import scratch_floats
from .score import query_bytes, table_bytes

BATCH = 256  # candidates looked up together; their records stay in the first cache
AHEAD = 16  # candidates asked for before they are read
LEAST_UNIT = 2.0**-100  # products above it have all their bits
MOST_ON_MEAN = 2.0**20  # half of the last bit of a sum is 1/8 below 2^21


@operation(types.uint64, *[types.int64] * 5, types.float32, types.int64, types.int64)
def _rank_sixteen(
    builder: Any,
    ranks: Any,
    thirds: Any,
    products: Any,
    scales: Any,
    finer: Any,
    unit: Any,
    target: Any,
    count: Any,
) -> Any:
    """The ranks of up to sixteen tokens; returns a mask of those whose n has to be counted.

    The addresses are those of ranks by two bits, of `_on_third_bits` less W, of the products with
    the means, of the bytes of both scales, and of the ranks by three bits.
    """
    vector = F32x16.ir

    def size(x: Any) -> Any:
        return call(builder, "llvm.fabs.v16f32", vector, x)

    unit = splat(builder, vector, unit)
    on_tile = load_float32(builder, products)
    one = builder.fmul(load_scales(builder, scales), unit)
    away = builder.fsub(load_estimates(builder, ranks), on_tile)
    most = builder.fmul(one, constant(vector, MOST_ON_MEAN))
    known = builder.fcmp_ordered(">=", one, constant(vector, LEAST_UNIT))
    known = builder.and_(known, builder.fcmp_ordered("<=", size(on_tile), most))
    infinite = constant(vector, float("inf"))
    known = builder.and_(known, builder.fcmp_ordered("<", size(away), infinite))
    n = call(builder, "llvm.rint.v16f32", vector, builder.fdiv(away, one))
    whole = builder.fadd(builder.fadd(n, n), load_float32(builder, thirds))
    y = builder.fmul(whole, load_scales(builder, finer))
    half = builder.fmul(unit, constant(vector, 0.5))
    store_ranks(builder, target, builder.fadd(builder.fmul(y, half), on_tile))
    unknown = builder.icmp_unsigned("==", known, ir.Constant(known.type, None))
    return mask_bits(builder, builder.and_(unknown, first_lanes(builder, vector, count)))


@outlined
def rank_by_three_bits(step, layout, scratch, row, i, tokens, ranks, n, target):
    """The ranks of n tokens, whose query has been prepared as the i-th in the scratch."""
    query = scratch + layout.queries + i * query_bytes(step.P, step.weights)
    words = query + table_bytes(step.P, step.weights)
    terms = scratch + layout.terms + TERMS_BYTES * i
    unit = load_scalar_float32(terms + UNIT)
    W = np.int64(load_scalar_float32(terms + TOTAL)) // 3
    x = scratch + layout.x + 4 * scratch_floats(step.Dt) * i
    # Distances are free by now.
    thirds = scratch + layout.distances
    products, scales = thirds + 4 * BATCH, thirds + 8 * BATCH
    finer = scales + BATCH
    for first in range(0, n, BATCH):
        count = min(BATCH, n - first)
        own = tokens + 4 * first
        if step.P == 2 and step.weights == 3:  # constants unroll the loops over words
            _look_up(step, row, 2, 3, words, W, own, count, thirds)
        elif step.P == 1 and step.weights == 3:
            _look_up(step, row, 1, 3, words, W, own, count, thirds)
        else:
            _look_up(step, row, step.P, step.weights, words, W, own, count, thirds)
        if stay_prepared(step):
            on_means = scratch + layout.on_means + 4 * i
            for j in range(count):
                tile = np.int64(load_int32(own + 4 * j)) // TILE
                product = load_scalar_float32(on_means + 4 * ROWS * tile)
                store_scalar_float32(products + 4 * j, product)
        else:
            _multiply_means(step, row, x, own, count, products)
        for j in range(0, count, LANES):
            to = target + 4 * (first + j)
            mask = _rank_sixteen(
                ranks + 4 * (first + j), thirds + 4 * j, products + 4 * j, scales + j, finer + j,
                unit, to, count - j,
            )  # fmt: skip
            while mask:
                lane = highest_bit(mask)
                mask ^= np.uint64(1) << np.uint64(lane)
                token = np.int64(load_int32(own + 4 * (j + lane)))
                two = 3 * W - 2 * _distance(step, row, words, token)
                third = np.int64(load_scalar_float32(thirds + 4 * (j + lane)))
                y = np.float32(2 * two + third) * load_scale(finer + j + lane)
                on_tile = load_scalar_float32(products + 4 * (j + lane))
                store_uint32(to + 4 * lane, rank_of(y * (unit / np.float32(2)) + on_tile))


@inlined
def _look_up(step, row, P, weights, words, W, tokens, count, thirds):
    """The third bits and the scales of up to BATCH tokens, as `_rank_sixteen` takes them."""
    b, h, _, _ = locate(step, row)
    scales = step.scales + b * step.scales_b + h * step.scales_h
    third = step.third + b * step.third_b + h * step.third_h
    finer = step.finer + b * step.finer_b + h * step.finer_h
    own_scales = thirds + 8 * BATCH
    own_finer = own_scales + BATCH
    for i in range(count):
        token = np.int64(load_int32(tokens + 4 * i))
        ahead = np.int64(load_int32(tokens + 4 * min(i + AHEAD, count - 1)))
        prefetch(third + 8 * P * ahead)
        prefetch(finer + ahead)
        prefetch(scales + ahead)
        on_third = _on_third_bits(words, third + 8 * P * token, P, weights)
        store_scalar_float32(thirds + 4 * i, np.float32(on_third - W))
        store_uint8(own_scales + i, load_uint8(scales + token))
        store_uint8(own_finer + i, load_uint8(finer + token))


@outlined
def _multiply_means(step, row, x, tokens, count, products):
    """The products of a query with the means of some tokens' tiles."""
    b, h, _, _ = locate(step, row)
    Dt = step.Dt
    means = step.means + b * step.means_b + h * step.means_h
    tile, product = np.int64(-1), np.float32(0)
    for i in range(count):
        own = np.int64(load_int32(tokens + 4 * i)) // TILE
        if own != tile:
            tile = own
            product = on_mean(x, means + 2 * Dt * tile, Dt)
        store_scalar_float32(products + 4 * i, product)


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


@outlined
def _distance(step, row, words, token):
    """The distance of one token."""
    b, h, _, _ = locate(step, row)
    P = step.P
    high = step.planes + b * step.planes_b + h * step.planes_h
    high += 64 * P * (token // 8) + 8 * (token % 8)
    total = 0
    for plane in range(1, step.weights + 1):
        total *= 2
        for p in range(P):
            sign = load_uint64(words + 8 * p)
            weight = load_uint64(words + 8 * (plane * P + p))
            total += 2 * count_bits(weight & (sign ^ load_uint64(high + 64 * p)))
            total += count_bits(weight & (sign ^ load_uint64(high + step.to_low + 64 * p)))
    return total
