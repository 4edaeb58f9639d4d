"""Codes of values, each relative to a base of its head, with a scale per token."""

from __future__ import annotations

import numpy as np

from adamas_core.reference.layout import TILE

from .._array import FLOAT32
from .._records import EncodeValues
from ._float_rows import LANES, load_first_lanes, widen_row
from ._jit import opaque
from ._memory import loop_at, reader
from ._simd import load_float32, load_int64, store_float32, store_uint8, sum_of, to_all
from .center import TOKENS_PER_THREAD, code_rest, scale_byte
from .hadamard import scratch_floats, transform

encode_values_at = reader(EncodeValues)


@opaque
def plan_values(at):
    loop = loop_at(at)
    record = encode_values_at(loop.record)
    loop.items = record.B * record.H_kv * ((record.S + TILE - 1) // TILE)
    loop.scratch = 8 * scratch_floats(record.Dt)
    if record.B * record.H_kv * record.S < 2 * TOKENS_PER_THREAD:
        loop.threads = 1
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
