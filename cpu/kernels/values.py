"""Codes of values, each relative to a base of its head, with a scale per token; and their sums."""

from __future__ import annotations

from typing import Any

import numpy as np

from adamas_core.reference.layout import TILE

from .._array import FLOAT32
from .._records import EncodeValues
from ._float_rows import LANES, load_first_lanes, narrow_row, store_first_lanes, widen_row
from ._jit import inlined, opaque
from ._memory import loop_at, reader
from ._simd import (
    F32x16,
    call,
    constant,
    load_float32,
    load_int64,
    operation,
    store_float32,
    store_uint8,
    sum_of,
    to_all,
)
from .center import TOKENS_PER_THREAD, code_rest, scale_byte
from .hadamard import scratch_floats, transform

encode_values_at = reader(EncodeValues)


@operation(F32x16, F32x16)
def finite_or_zero(builder: Any, x: Any) -> Any:
    size = call(builder, "llvm.fabs.v16f32", x.type, x)
    finite = builder.fcmp_ordered("<", size, constant(x.type, np.inf))
    return builder.select(finite, x, constant(x.type, 0))


@opaque
def plan_values(at):
    loop = loop_at(at)
    record = encode_values_at(loop.record)
    loop.items = record.B * record.H_kv if record.sums else 0
    loop.rest = record.B * record.H_kv * ((record.S + TILE - 1) // TILE)
    loop.scratch = 8 * scratch_floats(record.Dt)
    if record.B * record.H_kv * record.S < 2 * TOKENS_PER_THREAD:
        loop.threads = 1
    return 0


@inlined
def _add(row, D, target):
    """Add a row, in whole vectors, to D float32."""
    for d in range(0, D, LANES):
        x = load_first_lanes(target + 4 * d, FLOAT32, D - d) + load_float32(row + 4 * d)
        store_first_lanes(target + 4 * d, FLOAT32, x, D - d)


@inlined
def _clear(target, D):
    for d in range(0, D, LANES):
        store_first_lanes(target + 4 * d, FLOAT32, to_all(np.float32(0)), D - d)


@inlined
def _set_base(row, D, factor, base):
    """Store a row times a factor, with 0 where that is not finite."""
    for d in range(0, D, LANES):
        x = finite_or_zero(load_float32(row + 4 * d) * to_all(factor))
        store_first_lanes(base + 4 * d, FLOAT32, x, D - d)


@opaque
def sum_values(at, head, row):
    """Add the new values of a head to its sums, and set the bases that they complete.

    The order of additions is that of reference.values: tokens in a tile, and then tiles. Values
    from token 0 on begin new sums, whatever is in memory. `row` has room for two values.
    """
    record = encode_values_at(at)
    b, h = divmod(head, record.H_kv)
    start = load_int64(record.span + 16 * b)
    end = start + load_int64(record.span + 16 * b + 8)
    if start == end:
        return 0
    D, dtype = record.D, record.dtype
    v = record.v + b * record.v_b + h * record.v_h
    bases = record.bases + b * record.bases_b + h * record.bases_h
    full = record.sums + b * record.sums_b + h * record.sums_h
    total = record.total + 4 * D * head
    tile = row + 4 * scratch_floats(record.Dt)
    if start == 0:
        _clear(bases + 4 * D, D)
        _clear(full, D)
        _clear(full + 4 * D, D)
    widen_row(full + 4 * D, FLOAT32, D, tile)
    for token in range(start, end):
        widen_row(v + record.v_s * (token - start), dtype, D, row)
        if token == 0:
            _set_base(row, D, np.float32(1), bases)
        for d in range(0, D, LANES):
            store_float32(tile + 4 * d, load_float32(tile + 4 * d) + load_float32(row + 4 * d))
        if token % TILE == TILE - 1:
            if token == TILE - 1:
                _set_base(tile, D, np.float32(1 / TILE), bases + 4 * D)
            _add(tile, D, full)
            _clear(tile, D)
    narrow_row(tile, D, full + 4 * D, FLOAT32)
    narrow_row(full, D, total, FLOAT32)
    _add(tile, D, total)
    return 0


@opaque
def encode_values_block(at, item, row):
    """Code up to 64 new values of a head. `row` has room for two of them."""
    record = encode_values_at(at)
    head, block = divmod(item, (record.S + TILE - 1) // TILE)
    b, h = divmod(head, record.H_kv)
    start = load_int64(record.span + 16 * b)
    count = load_int64(record.span + 16 * b + 8)
    v = record.v + b * record.v_b + h * record.v_h
    codes = record.codes + b * record.codes_b + h * record.codes_h
    scales = record.scales + b * record.scales_b + h * record.scales_h
    bases = record.bases + b * record.bases_b + h * record.bases_h
    D, Dt, P = record.D, record.Dt, record.P
    rest = row + 4 * scratch_floats(Dt)
    for i in range(TILE * block, min(TILE * (block + 1), count)):
        token = start + i
        widen_row(v + record.v_s * i, record.dtype, D, row)
        base = bases if token < TILE else bases + 4 * D
        for d in range(0, D, LANES):
            x = load_float32(row + 4 * d) - load_first_lanes(base + 4 * d, FLOAT32, D - d)
            store_float32(row + 4 * d, x)
        transform(row, FLOAT32, D, Dt, rest)
        squares = to_all(np.float32(0))
        for d in range(0, Dt, LANES):
            x = load_float32(rest + 4 * d)
            squares += x * x
        high = codes + 16 * P * token
        own = high, high + 8 * P, 8
        scale = code_rest(rest, sum_of(squares), Dt, record.thresholds, row, own)
        store_uint8(scales + token, scale_byte(scale))
    return 0
