"""Codes of keys and queries, in their packed layouts."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba.core import types

from adamas_core.reference.layout import TILE

from .._array import FLOAT32
from .._records import Encode, Quantize
from ._float_rows import LANES, widen_row
from ._jit import inlined, opaque
from ._memory import loop_at, reader
from ._simd import (
    F32x16,
    I32x16,
    call,
    constant,
    larger_number,
    largest_of,
    load_float32,
    load_int64,
    load_scalar_float32,
    mask_bits,
    operation,
    splat,
    store_uint64,
    to_all,
)
from .hadamard import scratch_floats, transform

quantize_at = reader(Quantize)
encode_at = reader(Encode)


@operation(types.uint64, F32x16, F32x16)
def mask_below(builder: Any, a: Any, b: Any) -> Any:
    """The lanes where a < b; none where either is NaN."""
    return mask_bits(builder, builder.fcmp_ordered("<", a, b))


@operation(types.uint64, F32x16, types.int64)
def mask_of_bit(builder: Any, a: Any, bit: Any) -> Any:
    """The lanes whose bit `bit` is set. Each lane is a small whole number >= 0."""
    bit = splat(builder, I32x16, builder.trunc(bit, I32x16.element))
    chosen = builder.shl(constant(I32x16, 1), bit)
    present = builder.and_(builder.fptoui(a, I32x16), chosen)
    return mask_bits(builder, builder.icmp_unsigned("!=", present, constant(I32x16, 0)))


@operation(F32x16, F32x16)
def round_to_even(builder: Any, a: Any) -> Any:
    return call(builder, "llvm.rint.v16f32", F32x16.ir, a)


@operation(F32x16, F32x16)
def zero_where_nan(builder: Any, a: Any) -> Any:
    number = builder.fcmp_ordered("ord", a, a)
    return builder.select(number, a, constant(a.type, 0.0))


@inlined
def lanes_below(count):
    """A mask of 16 lanes, of which only the first `count` exist."""
    return (
        np.uint64(0xFFFF) if count >= LANES else (np.uint64(1) << np.uint64(count)) - np.uint64(1)
    )


@inlined
def bucketize(x, n, thresholds, high, low, stride):
    """Codes of n float32 at x, in whole vectors. Word p of each plane goes to p * stride.

    The number of thresholds below x is 0 to 3. Its high bit is the majority of the three
    comparisons, and its low bit their parity, in any order of the thresholds.
    """
    t0 = to_all(load_scalar_float32(thresholds))
    t1 = to_all(load_scalar_float32(thresholds + 4))
    t2 = to_all(load_scalar_float32(thresholds + 8))
    at = 0
    for first in range(0, n, 64):
        high_word = np.uint64(0)
        low_word = np.uint64(0)
        for d in range(first, min(first + 64, n), LANES):
            y = load_float32(x + 4 * d)
            a, b, c = mask_below(t0, y), mask_below(t1, y), mask_below(t2, y)
            exist = lanes_below(n - d)
            shift = np.uint64(d % 64)
            high_word |= (((a & b) | (c & (a | b))) & exist) << shift
            low_word |= ((a ^ b ^ c) & exist) << shift
        store_uint64(high + at, high_word)
        store_uint64(low + at, low_word)
        at += stride


@inlined
def weigh(x, n, P, bits, target):
    """Sign plane and bits - 1 weight planes of n float32 at x, in whole vectors with zeros."""
    zero = to_all(np.float32(0))
    maximum = zero
    for d in range(0, n, LANES):
        maximum = larger_number(maximum, abs(load_float32(x + 4 * d)))
    largest = to_all(largest_of(maximum))
    wmax = to_all(np.float32((1 << (bits - 1)) - 1))
    for p in range(P):
        for plane in range(bits):
            word = np.uint64(0)
            for d in range(64 * p, min(64 * p + 64, n), LANES):
                y = load_float32(x + 4 * d)
                if plane == 0:
                    mask = mask_below(zero, y)
                else:
                    w = round_to_even(zero_where_nan(abs(y) / largest) * wmax)
                    mask = mask_of_bit(w, bits - 1 - plane)
                word |= mask << np.uint64(d % 64)
            store_uint64(target + 8 * (plane * P + p), word)


@opaque
def plan_quantize(at):
    loop = loop_at(at)
    record = quantize_at(loop.record)
    loop.items = record.B * record.H * ((record.L + TILE - 1) // TILE)
    loop.scratch = 4 * (record.D + LANES)
    return 0


@opaque
def quantize_block(at, item, floats):
    """Codes of up to 64 rows if bits is 0; otherwise a sign plane and bits - 1 weight planes."""
    record = quantize_at(at)
    L, D, P, bits, stride = record.L, record.D, record.P, record.bits, record.x_l
    head, block = divmod(item, (L + TILE - 1) // TILE)
    b, h = divmod(head, record.H)
    source = record.x + b * record.x_b + h * record.x_h
    thresholds = record.thresholds + h * record.head_bytes
    row_bytes = 8 * P * max(bits, 2)
    target = record.target + row_bytes * head * L
    for l in range(block * TILE, min((block + 1) * TILE, L)):
        widen_row(source + l * stride, FLOAT32, D, floats)
        words = target + row_bytes * l
        if bits == 0:
            bucketize(floats, D, thresholds, words, words + 8 * P, 8)
        else:
            weigh(floats, D, P, bits, words)
    return 0


@opaque
def plan_encode(at):
    loop = loop_at(at)
    record = encode_at(loop.record)
    loop.items = record.B * record.H_kv * ((record.S + TILE - 1) // TILE)
    loop.scratch = 4 * scratch_floats(record.Dt)
    return 0


@opaque
def encode_block(at, item, floats):
    """Code up to 64 keys of one head. Each writes its own words alone."""
    record = encode_at(at)
    S, D, Dt, P = record.S, record.D, record.Dt, record.P
    dtype, stride = record.dtype, record.k_s
    head, block = divmod(item, (S + TILE - 1) // TILE)
    b, h = divmod(head, record.H_kv)
    source = record.k + b * record.k_b + h * record.k_h
    thresholds = record.thresholds + h * record.head_bytes
    high = record.planes + b * record.planes_b + h * record.planes_h
    low = high + record.to_low
    first = load_int64(record.first + 8 * b)
    for s in range(block * TILE, min((block + 1) * TILE, S)):
        transform(source + s * stride, dtype, D, Dt, floats)
        group, lane = divmod(first + s, 8)
        word = 64 * P * group + 8 * lane
        bucketize(floats, Dt, thresholds, high + word, low + word, 64)
    return 0
