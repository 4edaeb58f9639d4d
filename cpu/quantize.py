"""Codes of keys and queries, in their packed layouts."""

from __future__ import annotations

import numpy as np
from numba import prange
from numpy.typing import NDArray

from adamas_core.reference.quantize import TILE

from ._array import FLOAT32, LANES, address, dtype_code, widen_row, with_four_axes
from ._jit import inlined, kernel, part
from ._simd import (
    larger_number,
    largest_of,
    load_float32,
    load_int64,
    load_scalar_float32,
    mask_below,
    mask_of_bit,
    round_to_even,
    store_uint64,
    to_all,
    zero_where_nan,
)
from .hadamard import scratch_floats, transform, transformed_size

try:
    from ._pack import append
except ImportError:  # a source tree whose compiled module was never built
    append = None  # type: ignore[assignment]

# Keys up to which one thread is done before a parallel kernel has been called: 0.5 us a key at
# D = 128 against 13 us a call.
FEW_KEYS = 24


def quantize(x: NDArray[np.float32], thresholds: NDArray[np.float32]) -> NDArray[np.uint64]:
    """Bucketize transformed x (..., Dt) into packed 2-bit codes, rows (..., 2P)."""
    codes = np.empty((*x.shape[:-1], 2 * words(x.shape[-1])), np.uint64)
    if codes.size:
        x = with_four_axes(x)
        limits, head_bytes = _limits(thresholds)
        at = address(limits), head_bytes
        _quantize(address(x), *x.strides[:3], *x.shape, 0, *at, address(codes))
    return codes


def quantize_query(x: NDArray[np.float32], bits: int = 4) -> NDArray[np.uint64]:
    """Split transformed queries x (..., Dt) into packed bit planes (..., bits * P)."""
    planes = np.empty((*x.shape[:-1], bits * words(x.shape[-1])), np.uint64)
    if planes.size:
        x = with_four_axes(x)
        _quantize(address(x), *x.strides[:3], *x.shape, bits, 0, 0, address(planes))
    return planes


def encode(
    k: NDArray,
    thresholds: NDArray[np.float32],
    planes: NDArray[np.uint64] | None = None,
    start: int | NDArray[np.integer] = 0,
) -> NDArray[np.uint64]:
    """Key planes (2, B, H_kv, T, 8, P, 8) of k (B, H_kv, S, D), or k's tokens put into `planes`."""
    B, H_kv, S, D = k.shape
    Dt = transformed_size(D)
    if planes is None:
        start = 0
        planes = np.zeros((2, B, H_kv, -(-S // TILE), 8, words(Dt), 8), np.uint64)
    if append is not None and B * H_kv * S <= FEW_KEYS:
        append(k, thresholds, planes, start)
    elif k.size:
        limits, head_bytes = _limits(thresholds)
        first = np.empty(B, np.int64)
        first[:] = start
        _encode(
            *(address(k), dtype_code(k), *k.strides[:3], *k.shape, Dt),
            *(address(limits), head_bytes, address(first)),
            *(address(planes), *planes.strides[:3]),
        )
    return planes


def _limits(thresholds: NDArray[np.float32]) -> tuple[NDArray[np.float32], int]:
    """Thresholds without gaps, and how many bytes further each head's are."""
    thresholds = np.ascontiguousarray(thresholds, np.float32)
    return thresholds, 12 if thresholds.size > 3 else 0


def words(Dt: int) -> int:
    """P: 64-bit words a bit plane."""
    return -(-Dt // 64)


@inlined
def lanes_below(count):
    """The low bits of a mask of 16 lanes of which only the first count exist."""
    return (
        np.uint64(0xFFFF) if count >= LANES else (np.uint64(1) << np.uint64(count)) - np.uint64(1)
    )


@inlined
def bucketize(x, n, thresholds, high, low, step):
    """Codes of n float32 at x, padded to whole vectors: word p of each plane goes to + p * step.

    The number of thresholds below x, from 0 to 3, has the majority of the three comparisons as its
    high bit and their parity as its low one, in whatever order the thresholds are.
    """
    t0 = to_all(load_scalar_float32(thresholds))
    t1 = to_all(load_scalar_float32(thresholds + 4))
    t2 = to_all(load_scalar_float32(thresholds + 8))
    for p in range((n + 63) // 64):
        high_word = np.uint64(0)
        low_word = np.uint64(0)
        for d in range(64 * p, min(64 * p + 64, n), LANES):
            y = load_float32(x + 4 * d)
            a, b, c = mask_below(t0, y), mask_below(t1, y), mask_below(t2, y)
            exist = lanes_below(n - d)
            shift = np.uint64(d % 64)
            high_word |= (((a & b) | (c & (a | b))) & exist) << shift
            low_word |= ((a ^ b ^ c) & exist) << shift
        store_uint64(high + p * step, high_word)
        store_uint64(low + p * step, low_word)


@inlined
def weigh(x, n, bits, target):
    """Sign plane and bits - 1 weight planes of n float32 at x, zeros behind to a whole vector."""
    zero = to_all(np.float32(0))
    maximum = zero
    for d in range(0, n, LANES):
        maximum = larger_number(maximum, abs(load_float32(x + 4 * d)))
    largest = to_all(largest_of(maximum))
    wmax = to_all(np.float32((1 << (bits - 1)) - 1))
    P = (n + 63) // 64
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
def _quantize(x, stride_b, stride_h, stride_l, B, H, L, D, bits, thresholds, head_bytes, rows):
    """Codes where bits is 0, otherwise a sign plane and bits - 1 weight planes."""
    row_bytes = 8 * max(bits, 2) * ((D + 63) // 64)
    blocks = (L + TILE - 1) // TILE
    for item in prange(B * H * blocks):
        row = np.empty(D + LANES, np.float32)
        head, block = divmod(item, blocks)
        b, h = divmod(head, H)
        l = block * TILE
        source = x + b * stride_b + h * stride_h + l * stride_l
        target = rows + row_bytes * (head * L + l)
        count = min(TILE, L - l)
        if bits == 0:
            _quantize_block(source, stride_l, count, D, thresholds + h * head_bytes, target, row)
        else:
            _weigh_block(source, stride_l, count, D, bits, target, row)


@part
def _quantize_block(x, stride_l, count, D, thresholds, codes, row):
    P = (D + 63) // 64
    floats = row.ctypes.data
    for l in range(count):
        widen_row(x + l * stride_l, FLOAT32, D, floats)
        high = codes + 16 * P * l
        bucketize(floats, D, thresholds, high, high + 8 * P, 8)


@part
def _weigh_block(x, stride_l, count, D, bits, planes, row):
    P = (D + 63) // 64
    floats = row.ctypes.data
    for l in range(count):
        widen_row(x + l * stride_l, FLOAT32, D, floats)
        weigh(floats, D, bits, planes + 8 * bits * P * l)


@kernel
def _encode(
    k, dtype, stride_b, stride_h, stride_s, B, H, S, D, Dt, thresholds, head_bytes, first,
    planes, plane_stride, plane_stride_b, plane_stride_h,
):  # fmt: skip
    blocks = (S + TILE - 1) // TILE
    for item in prange(B * H * blocks):
        row = np.empty(scratch_floats(Dt), np.float32)
        head, block = divmod(item, blocks)
        b, h = divmod(head, H)
        s = block * TILE
        source = k + b * stride_b + h * stride_h + s * stride_s
        high = planes + b * plane_stride_b + h * plane_stride_h
        slot = load_int64(first + 8 * b) + s
        _encode_block(
            source, dtype, stride_s, min(TILE, S - s), D, Dt, thresholds + h * head_bytes,
            high, high + plane_stride, slot, row,
        )  # fmt: skip


@part
def _encode_block(k, dtype, stride_s, count, D, Dt, thresholds, high, low, slot, row):
    """Tokens into slots slot .. slot + count of one head; each writes its own words alone."""
    P = (Dt + 63) // 64
    floats = row.ctypes.data
    for s in range(count):
        transform(k + s * stride_s, dtype, D, Dt, floats)
        group, lane = divmod(slot + s, 8)
        at = 64 * P * group + 8 * lane
        bucketize(floats, Dt, thresholds, high + at, low + at, 64)
