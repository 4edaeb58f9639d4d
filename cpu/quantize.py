"""Codes of keys and queries, in their packed layouts."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import prange
from numba.core import types
from numpy.typing import NDArray

from adamas_core.reference.layout import TILE, padded, tiles, words

from ._array import FLOAT32, address_of, dtype_code, with_four_axes
from ._float_rows import LANES, widen_row
from ._jit import inlined, kernel, outlined
from ._record import Record
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

try:
    from ._pack import append
except ImportError:  # a source tree whose compiled module was never built
    append = None  # type: ignore[assignment]

# With at most this many keys one thread is done before a parallel kernel has been called: it takes
# 0.5 us per key at D = 128, and the call takes 13 us.
FEW_KEYS = 24

# x is float32 (B, H, L, D). The thresholds of a head lie head_bytes after those of the last one.
Quantize = Record(
    *("x", "x_b", "x_h", "x_l", "B", "H", "L", "D", "P", "bits"),
    *("thresholds", "head_bytes", "target"),
)
quantize_at = Quantize.reader()

# k is (B, H_kv, S, D). `first` is an address: the slot of the first token of each sequence.
# The low plane lies to_low bytes after the high one.
Encode = Record(
    *("k", "dtype", "k_b", "k_h", "k_s", "B", "H_kv", "S", "D", "Dt", "P", "first"),
    *("thresholds", "head_bytes", "planes", "to_low", "planes_b", "planes_h"),
)
encode_at = Encode.reader()


def quantize(x: NDArray[np.float32], thresholds: NDArray[np.float32]) -> NDArray[np.uint64]:
    """Bucketize transformed x (..., Dt) into packed 2-bit codes, rows (..., 2P)."""
    codes = np.empty((*x.shape[:-1], 2 * words(x.shape[-1])), np.uint64)
    if codes.size:
        limits, head_bytes = _limits(thresholds)
        x = with_four_axes(x)
        fields = _x_fields(x)
        _quantize(
            Quantize(
                fields,
                thresholds=address_of(limits),
                head_bytes=head_bytes,
                target=address_of(codes),
            )
        )
    return codes


def quantize_query(x: NDArray[np.float32], bits: int = 4) -> NDArray[np.uint64]:
    """Split transformed queries x (..., Dt) into packed bit planes (..., bits * P)."""
    planes = np.empty((*x.shape[:-1], bits * words(x.shape[-1])), np.uint64)
    if planes.size:
        x = with_four_axes(x)
        _quantize(Quantize(_x_fields(x), bits=bits, target=address_of(planes)))
    return planes


def encode(
    k: NDArray,
    thresholds: NDArray[np.float32],
    planes: NDArray[np.uint64] | None = None,
    start: int | NDArray[np.integer] = 0,
) -> NDArray[np.uint64]:
    """Key planes (2, B, H_kv, T, 8, P, 8) of k (B, H_kv, S, D), or k's tokens put into `planes`."""
    B, H_kv, S, D = k.shape
    if planes is None:
        start = 0
        planes = np.zeros((2, B, H_kv, tiles(S), 8, words(D), 8), np.uint64)
    if append is not None and B * H_kv * S <= FEW_KEYS:
        append(k, thresholds, planes, start)
    elif k.size:
        limits, head_bytes = _limits(thresholds)
        first = np.empty(B, np.int64)
        first[:] = start
        k_b, k_h, k_s, _ = k.strides
        to_low, planes_b, planes_h = planes.strides[:3]
        record = Encode(
            k=address_of(k), dtype=dtype_code(k), k_b=k_b, k_h=k_h, k_s=k_s,
            B=B, H_kv=H_kv, S=S, D=D, Dt=padded(D), P=words(D), first=address_of(first),
            thresholds=address_of(limits), head_bytes=head_bytes,
            planes=address_of(planes), to_low=to_low, planes_b=planes_b, planes_h=planes_h,
        )  # fmt: skip
        _encode(record)
    return planes


def _x_fields(x: NDArray[np.float32]) -> dict[str, int]:
    x_b, x_h, x_l, _ = x.strides
    B, H, L, D = x.shape
    return {
        "x": address_of(x),
        "x_b": x_b,
        "x_h": x_h,
        "x_l": x_l,
        "B": B,
        "H": H,
        "L": L,
        "D": D,
        "P": words(D),
    }


def _limits(thresholds: NDArray[np.float32]) -> tuple[NDArray[np.float32], int]:
    """Contiguous thresholds, and the bytes from one head's to the next: 0 if heads share them."""
    thresholds = np.ascontiguousarray(thresholds, np.float32)
    return thresholds, 12 if thresholds.size > 3 else 0


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


@kernel
def _quantize(records):
    """Codes where bits is 0; otherwise a sign plane and bits - 1 weight planes."""
    record = records[0]
    at = records.ctypes.data
    blocks = (record.L + TILE - 1) // TILE
    floats = record.D + LANES
    for item in prange(record.B * record.H * blocks):
        row = np.empty(floats, np.float32)
        _quantize_block(at, np.int64(item), row)


@outlined
def _quantize_block(at, item, row):
    record = quantize_at(at)
    L, D, P, bits, stride = record.L, record.D, record.P, record.bits, record.x_l
    head, block = divmod(item, (L + TILE - 1) // TILE)
    b, h = divmod(head, record.H)
    source = record.x + b * record.x_b + h * record.x_h
    thresholds = record.thresholds + h * record.head_bytes
    row_bytes = 8 * P * max(bits, 2)
    target = record.target + row_bytes * head * L
    floats = row.ctypes.data
    for l in range(block * TILE, min((block + 1) * TILE, L)):
        widen_row(source + l * stride, FLOAT32, D, floats)
        words = target + row_bytes * l
        if bits == 0:
            bucketize(floats, D, thresholds, words, words + 8 * P, 8)
        else:
            weigh(floats, D, P, bits, words)


@kernel
def _encode(records):
    record = records[0]
    at = records.ctypes.data
    blocks = (record.S + TILE - 1) // TILE
    floats = scratch_floats(record.Dt)
    for item in prange(record.B * record.H_kv * blocks):
        row = np.empty(floats, np.float32)
        _encode_block(at, np.int64(item), row)


@outlined
def _encode_block(at, item, row):
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
    floats = row.ctypes.data
    for s in range(block * TILE, min((block + 1) * TILE, S)):
        transform(source + s * stride, dtype, D, Dt, floats)
        group, lane = divmod(first + s, 8)
        word = 64 * P * group + 8 * lane
        bucketize(floats, Dt, thresholds, high + word, low + word, 64)
