"""Codes of keys relative to the mean of their tile, with a scale a token."""

from __future__ import annotations

import numpy as np
from numba import prange
from numpy.typing import NDArray

from adamas_core.reference.center import SCALE_LEAST, SCALE_SHIFT, Centers
from adamas_core.reference.quantize import TILE

from ._array import FLOAT16, LANES, LINE, address, aligned, dtype_code, load_first_lanes, load_lanes
from ._jit import inlined, kernel, part
from ._simd import (
    bits_of,
    load_first_float32,
    load_float32,
    load_int64,
    load_scalar_float32,
    number_below,
    square_root,
    store_first_float16,
    store_first_float32,
    store_float32,
    store_scalar_float32,
    store_uint8,
    sum_of,
    to_all,
    zero_unless_below,
)
from .hadamard import scratch_floats, transform, transformed_size
from .quantize import bucketize, words

LIMIT = 65520.0  # what rounds to infinity in float16


def encode_centered(
    k: NDArray,
    thresholds: NDArray[np.float32],
    planes: NDArray[np.uint64],
    centers: Centers,
    start: int | NDArray[np.integer] = 0,
    count: int | NDArray[np.integer] | None = None,
) -> NDArray[np.uint64]:
    """Make keys k (B, H_kv, S, D) the tokens start, start + 1, ... of planes and centers."""
    B, H_kv, S, D = k.shape
    if k.size:
        Dt = transformed_size(D)
        limits = np.ascontiguousarray(np.broadcast_to(thresholds, (H_kv, 3)), np.float32)
        span = np.empty((B, 2), np.int64)
        span[:, 0] = start
        span[:, 1] = span[:, 0] + (S if count is None else count)
        means, scales, tail = centers
        _encode_centered(
            *(address(k), dtype_code(k), *k.strides[:3], B, H_kv, S, D, Dt, words(Dt)),
            *(address(limits), address(span), address(planes), *planes.strides[:3]),
            *(address(means), *means.strides[:2], address(scales), *scales.strides[:2]),
            *(address(tail), *tail.strides[:2]),
        )
    return planes


@kernel
def _encode_centered(
    k, dtype, k_b, k_h, k_s, B, H, S, D, Dt, P, thresholds, span,
    planes, plane, planes_b, planes_h, means, means_b, means_h, scales, scales_b, scales_h,
    tail, tail_b, tail_h,
):  # fmt: skip
    """First the tiles that become full, which need no other tile; then what is left of each head.

    The tail is read by the first and written by the second.
    """
    most = S // TILE + 1  # tiles of a head that S tokens can fill
    for i in prange(B * H * most):
        head, j = divmod(np.int64(i), most)
        b, h = divmod(head, H)
        start, end = load_int64(span + 16 * b), load_int64(span + 16 * b + 8)
        tile = start // TILE + j
        if tile * TILE + TILE <= end:
            rows = np.empty(4 * (TILE + 1) * scratch_floats(Dt) + LINE, np.uint8)
            high = planes + b * planes_b + h * planes_h
            mean = means + b * means_b + h * means_h + 2 * Dt * tile
            _full_tile(
                k + b * k_b + h * k_h, dtype, k_s, D, Dt, P, start, tile,
                thresholds + 12 * h, high, high + plane, mean,
                scales + b * scales_b + h * scales_h, tail + b * tail_b + h * tail_h, rows,
            )  # fmt: skip
    for i in prange(B * H):
        b, h = divmod(np.int64(i), H)
        row = np.empty(4 * 2 * scratch_floats(Dt) + LINE, np.uint8)
        high = planes + b * planes_b + h * planes_h
        _last_tokens(
            k + b * k_b + h * k_h, dtype, k_s, D, Dt, P,
            load_int64(span + 16 * b), load_int64(span + 16 * b + 8),
            thresholds + 12 * h, high, high + plane, means + b * means_b + h * means_h,
            scales + b * scales_b + h * scales_h, tail + b * tail_b + h * tail_h, row,
        )  # fmt: skip


@part
def _full_tile(
    k, dtype, k_s, D, Dt, P, start, tile, thresholds, high, low, mean, scales, tail, scratch
):
    """All tokens of a tile, those before `start` from the tail; its mean, then its codes."""
    step = 4 * scratch_floats(Dt)
    rows = aligned(scratch)
    rest = rows + step * TILE
    for i in range(TILE):
        token = TILE * tile + i
        if token < start:
            load_row(tail + 4 * Dt * i, Dt, rows + step * i)
        else:
            transform(k + k_s * (token - start), dtype, D, Dt, rows + step * i)
    for d in range(0, Dt, LANES):
        total = to_all(np.float32(0))
        for i in range(TILE):
            total += load_float32(rows + step * i + 4 * d)
        total = zero_unless_below(total * to_all(np.float32(1 / TILE)), to_all(np.float32(LIMIT)))
        store_first_float16(mean + 2 * d, total, Dt - d)
    for i in range(TILE):
        token = TILE * tile + i
        _code(rows + step * i, mean, Dt, P, thresholds, high, low, scales, token, rest)


@part
def _last_tokens(
    k, dtype, k_s, D, Dt, P, start, end, thresholds, high, low, means, scales, tail, scratch
):
    """Tokens of the tile that is not full, against the mean before it; and the newest as tail."""
    row = aligned(scratch)
    rest = row + 4 * scratch_floats(Dt)
    first = TILE * (end // TILE)
    mean = means + 2 * Dt * (first // TILE)
    if start <= first < end:  # its first token is among them
        for d in range(0, Dt, LANES):
            before = to_all(np.float32(0))
            if first > 0:
                before = load_mean(mean - 2 * Dt + 2 * d, Dt - d)
            store_first_float16(mean + 2 * d, before, Dt - d)
    for token in range(max(start, end - TILE), end):
        transform(k + k_s * (token - start), dtype, D, Dt, row)
        for d in range(0, Dt, LANES):
            at = tail + 4 * (Dt * (token % TILE) + d)
            store_first_float32(at, load_float32(row + 4 * d), Dt - d)
        if token >= first:
            _code(row, mean, Dt, P, thresholds, high, low, scales, token, rest)


@inlined
def load_row(source, Dt, target):
    """Dt float32 into whole vectors, zeros behind."""
    for d in range(0, Dt, LANES):
        store_float32(target + 4 * d, load_first_float32(source + 4 * d, Dt - d))


@inlined
def load_mean(at, count):
    """Sixteen float16, or the first `count` with zeros behind."""
    return load_lanes(at, FLOAT16) if count >= LANES else load_first_lanes(at, FLOAT16, count)


@part
def _code(row, mean, Dt, P, thresholds, high, low, scales, token, rest):
    """Code a transformed key, in whole vectors with zeros behind; `rest` is room for another.

    Sums are those of the reference's lane_sums; lanes behind Dt add zeros, which change none.
    """
    squares = to_all(np.float32(0))
    for d in range(0, Dt, LANES):
        x = load_float32(row + 4 * d) - load_mean(mean + 2 * d, Dt - d)
        store_float32(rest + 4 * d, x)
        squares += x * x
    square = sum_of(squares)
    rms = square_root(square / np.float32(Dt))
    # The row is of no use any more, and its first three numbers become the token's thresholds.
    for i in range(3):
        store_scalar_float32(row + 4 * i, load_scalar_float32(thresholds + 4 * i) * rms)
    group, lane = divmod(token, 8)
    at = 64 * P * group + 8 * lane
    bucketize(rest, Dt, row, high + at, low + at, 64)
    t0 = to_all(load_scalar_float32(row))
    t1 = to_all(load_scalar_float32(row + 4))
    t2 = to_all(load_scalar_float32(row + 8))
    half = to_all(np.float32(1.5))
    along = to_all(np.float32(0))
    for d in range(0, Dt, LANES):
        x = load_float32(rest + 4 * d)
        along += x * (number_below(t0, t1, t2, x) - half)
    scale = square / sum_of(along)
    byte = 0
    if scale > 0:  # which NaN is not
        rounded = (bits_of(scale) + (1 << (SCALE_SHIFT - 1))) >> SCALE_SHIFT
        byte = min(max(rounded - SCALE_LEAST, 0), 255)
    store_uint8(scales + token, np.uint8(byte))
