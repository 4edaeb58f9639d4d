"""Codes of keys relative to the mean of their tile, with a scale per token."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba.core import types

from adamas_core.reference.center import SCALE_LEAST, SCALE_SHIFT
from adamas_core.reference.layout import TILE

from .._array import FLOAT16
from .._records import EncodeCentered
from ._float_rows import LANES, load_first_lanes, load_lanes, store_first_float16
from ._jit import inlined, opaque, outlined
from ._memory import loop_at, reader
from ._simd import (
    F32,
    I8,
    I32,
    I64,
    F32x16,
    I32x16,
    call,
    constant,
    load,
    load_first_float32,
    load_float32,
    load_int64,
    load_scalar_float32,
    operation,
    store_first_float32,
    store_float32,
    store_scalar_float32,
    store_uint8,
    store_uint64,
    sum_of,
    to_all,
)
from .hadamard import scratch_floats, transform
from .quantize import bucketize, lanes_below, mask_below

TOKENS_PER_THREAD = 128  # coded in 0.1 ms, the time that waking another thread takes
LIMIT = 65520.0  # the least number that float16 rounds to infinity

encode_centered_at = reader(EncodeCentered)


# ---- operations --------------------------------------------------------------------------------


@operation(F32x16, F32x16, F32x16)
def zero_unless_below(builder: Any, x: Any, limit: Any) -> Any:
    """x where |x| < limit, else 0. NaN is not below."""
    size = call(builder, "llvm.fabs.v16f32", x.type, x)
    return builder.select(builder.fcmp_ordered("<", size, limit), x, ir.Constant(x.type, None))


@operation(F32x16, F32x16, F32x16, F32x16, F32x16)
def number_below(builder: Any, a: Any, b: Any, c: Any, x: Any) -> Any:
    """How many of a, b and c are below x, in each lane. None is below NaN."""
    below = (builder.zext(builder.fcmp_ordered("<", t, x), I32x16) for t in (a, b, c))
    total = constant(I32x16, 0)
    for one in below:
        total = builder.add(total, one)
    return builder.uitofp(total, x.type)


@operation(F32x16, F32x16, F32x16)
def quarter_towards(builder: Any, limit: Any, x: Any) -> Any:
    """1/4 in the lanes where limit < x, else -1/4."""
    above = builder.fcmp_ordered("<", limit, x)
    return builder.select(above, constant(x.type, 0.25), constant(x.type, -0.25))


@operation(types.float32, types.float32)
def square_root(builder: Any, x: Any) -> Any:
    return call(builder, "llvm.sqrt.f32", F32, x)


@operation(types.int64, types.float32)
def bits_of(builder: Any, x: Any) -> Any:
    return builder.zext(builder.bitcast(x, I32), I64)


@operation(F32x16, types.int64)
def load_scales(builder: Any, address: Any) -> Any:
    """The scales of sixteen bytes, as scale_of of the reference."""
    byte = builder.zext(load(builder, address, ir.VectorType(I8, 16)), I32x16)
    shifted = builder.add(byte, constant(I32x16, SCALE_LEAST))
    return builder.bitcast(builder.shl(shifted, constant(I32x16, SCALE_SHIFT)), F32x16.ir)


@operation(types.float32, types.int64)
def load_scale(builder: Any, address: Any) -> Any:
    """The scale of one byte."""
    byte = builder.load(builder.inttoptr(address, I8.as_pointer()), align=1)
    shifted = builder.add(builder.zext(byte, I32), I32(SCALE_LEAST))
    return builder.bitcast(builder.shl(shifted, I32(SCALE_SHIFT)), F32)


@inlined
def load_row(source, Dt, target):
    """Copy Dt float32 into whole vectors, and fill the last one with zeros."""
    for d in range(0, Dt, LANES):
        store_float32(target + 4 * d, load_first_float32(source + 4 * d, Dt - d))


@inlined
def load_mean(at, count):
    """Sixteen float16, or the first `count` of them and zeros."""
    return load_lanes(at, FLOAT16) if count >= LANES else load_first_lanes(at, FLOAT16, count)


# ---- the kernel --------------------------------------------------------------------------------


class Head(NamedTuple):
    """Addresses of one KV head's arrays, and its new tokens start .. end."""

    k: int
    thresholds: int
    high: int
    low: int
    means: int
    scales: int
    third: int
    third_scales: int
    open_tile: int
    start: int
    end: int


@inlined
def _head(record, b, h):
    high = record.planes + b * record.planes_b + h * record.planes_h
    return Head(
        record.k + b * record.k_b + h * record.k_h,
        record.thresholds + 12 * h,
        high,
        high + record.to_low,
        record.means + b * record.means_b + h * record.means_h,
        record.scales + b * record.scales_b + h * record.scales_h,
        record.third + b * record.third_b + h * record.third_h,
        record.third_scales + b * record.third_scales_b + h * record.third_scales_h,
        record.open_tile + b * record.open_tile_b + h * record.open_tile_h,
        load_int64(record.span + 16 * b),
        load_int64(record.span + 16 * b + 8),
    )


@opaque
def plan_centered(at):
    """First the tiles that become full, which need no other tile; then the other new tokens.

    The first round reads the open tiles, and the second one writes them.
    """
    loop = loop_at(at)
    record = encode_centered_at(loop.record)
    loop.items = record.B * record.H_kv * _most_tiles(record)
    loop.rest = record.B * record.H_kv
    loop.scratch = 4 * scratch_floats(record.Dt) * (TILE + 1)
    if _tokens_to_code(record) < 2 * TOKENS_PER_THREAD:
        loop.threads = 1
    return 0


@inlined
def _most_tiles(record):
    """The tiles of a head that its new tokens can fill."""
    return record.S // TILE + 1


@inlined
def _tokens_to_code(record):
    """Tokens of all heads: the new ones, and those of tiles that become full."""
    tokens = 0
    for b in range(record.B):
        start, end = load_int64(record.span + 16 * b), load_int64(record.span + 16 * b + 8)
        tokens += end - start + (start % TILE if end // TILE > start // TILE else 0)
    return record.H_kv * tokens


@opaque
def encode_full_tile(at, item, rows):
    """Code all tokens of a tile that becomes full; those before `start` are in the open tile."""
    record = encode_centered_at(at)
    index, j = divmod(item, _most_tiles(record))
    b, h = divmod(index, record.H_kv)
    head = _head(record, b, h)
    tile = head.start // TILE + j
    if (tile + 1) * TILE > head.end:
        return 0
    Dt = record.Dt
    row_bytes = 4 * scratch_floats(Dt)
    rest = rows + row_bytes * TILE
    for i in range(TILE):
        token = TILE * tile + i
        if token < head.start:
            load_row(head.open_tile + 4 * Dt * i, Dt, rows + row_bytes * i)
        else:
            source = head.k + record.k_s * (token - head.start)
            transform(source, record.dtype, record.D, Dt, rows + row_bytes * i)
    mean = head.means + 2 * Dt * tile
    for d in range(0, Dt, LANES):
        total = to_all(np.float32(0))
        for i in range(TILE):
            total += load_float32(rows + row_bytes * i + 4 * d)
        total = zero_unless_below(total * to_all(np.float32(1 / TILE)), to_all(np.float32(LIMIT)))
        store_first_float16(mean + 2 * d, total, Dt - d)
    for i in range(TILE):
        _code(record, head, TILE * tile + i, rows + row_bytes * i, mean, rest)
    return 0


@opaque
def encode_last_tokens(at, item, row):
    """Code the tokens of the open tile against the mean before it, and store the newest keys."""
    record = encode_centered_at(at)
    b, h = divmod(item, record.H_kv)
    head = _head(record, b, h)
    start, end, Dt = head.start, head.end, record.Dt
    rest = row + 4 * scratch_floats(Dt)
    first = TILE * (end // TILE)
    mean = head.means + 2 * Dt * (first // TILE)
    if start <= first < end:  # the tile's first token is new
        for d in range(0, Dt, LANES):
            before = to_all(np.float32(0))
            if first > 0:
                before = load_mean(mean - 2 * Dt + 2 * d, Dt - d)
            store_first_float16(mean + 2 * d, before, Dt - d)
    for token in range(max(start, end - TILE), end):
        transform(head.k + record.k_s * (token - start), record.dtype, record.D, Dt, row)
        for d in range(0, Dt, LANES):
            target = head.open_tile + 4 * (Dt * (token % TILE) + d)
            store_first_float32(target, load_float32(row + 4 * d), Dt - d)
        if token >= first:
            _code(record, head, token, row, mean, rest)
    return 0


@outlined
def _code(record, head, token, row, mean, rest):
    """Code a transformed key, in whole vectors with zeros. `rest` has room for another row.

    Sums are those of the reference's lane_sums. Lanes after Dt add zeros, which change no sum.
    """
    Dt, P = record.Dt, record.P
    squares = to_all(np.float32(0))
    for d in range(0, Dt, LANES):
        x = load_float32(row + 4 * d) - load_mean(mean + 2 * d, Dt - d)
        store_float32(rest + 4 * d, x)
        squares += x * x
    square = sum_of(squares)
    group, lane = divmod(token, 8)
    at = 64 * P * group + 8 * lane
    words = head.high + at, head.low + at, 64
    scale = code_rest(rest, square, Dt, head.thresholds, row, words)
    store_uint8(head.scales + token, scale_byte(scale))
    if record.third == 0:
        return
    t0, t1, t2 = _limits(row)
    half = to_all(np.float32(1.5))
    finer = to_all(np.float32(0))
    s = to_all(scale)
    words = head.third + 8 * P * token
    word = np.uint64(0)
    for d in range(0, Dt, LANES):
        x = load_float32(rest + 4 * d)
        u = number_below(t0, t1, t2, x) - half
        word |= (mask_below(s * u, x) & lanes_below(Dt - d)) << np.uint64(d % 64)
        finer += x * (u + quarter_towards(s * u, x))
        if (d + LANES) % 64 == 0 or d + LANES >= Dt:
            store_uint64(words + 8 * (d // 64), word)
            word = np.uint64(0)
    store_uint8(head.third_scales + token, scale_byte(square / sum_of(finer)))


@inlined
def code_rest(rest, square, Dt, thresholds, own, words):
    """Write the two bits of a row of Dt numbers, of which `square` is the sum of squares.

    Returns the scale. `own` gets the row's thresholds: three float32. `words` are the addresses of
    the first high and the first low word, and the bytes from a word to the next one.
    """
    rms = square_root(square / np.float32(Dt))
    for i in range(3):
        store_scalar_float32(own + 4 * i, load_scalar_float32(thresholds + 4 * i) * rms)
    high, low, to_word = words
    bucketize(rest, Dt, own, high, low, to_word)
    t0, t1, t2 = _limits(own)
    half = to_all(np.float32(1.5))
    along = to_all(np.float32(0))
    for d in range(0, Dt, LANES):
        x = load_float32(rest + 4 * d)
        along += x * (number_below(t0, t1, t2, x) - half)
    return square / sum_of(along)


@inlined
def _limits(own):
    """The three thresholds of a row, each in all lanes."""
    return (
        to_all(load_scalar_float32(own)),
        to_all(load_scalar_float32(own + 4)),
        to_all(load_scalar_float32(own + 8)),
    )


@inlined
def scale_byte(scale):
    """The byte of a scale, as scale_byte of the reference."""
    if not scale > 0:  # NaN too
        return np.uint8(0)
    rounded = (bits_of(scale) + (1 << (SCALE_SHIFT - 1))) >> SCALE_SHIFT
    return np.uint8(min(max(rounded - SCALE_LEAST, 0), 255))
