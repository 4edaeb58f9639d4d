"""Walsh-Hadamard transform along head_dim."""

from __future__ import annotations

import numpy as np
from numba import prange
from numpy.typing import NDArray

from ._array import LANES, address, dtype_code, widen_row, with_four_axes
from ._jit import inlined, kernel, part
from ._simd import (
    butterfly1,
    butterfly2,
    butterfly4,
    butterfly8,
    load_float32,
    store_first_float32,
    store_float32,
    to_all,
)

BLOCK = 64  # rows a thread takes at a time


def hadamard(x: NDArray) -> NDArray[np.float32]:
    """Transform x (..., D) of any float dtype into float32 (..., Dt)."""
    D = x.shape[-1]
    Dt = transformed_size(D)
    y = np.empty((*x.shape[:-1], Dt), np.float32)
    if y.size:
        x = with_four_axes(x)
        _hadamard(address(x), dtype_code(x), *x.strides[:3], *x.shape, Dt, address(y))
    return y


def transformed_size(D: int) -> int:
    """Dt: D rounded up to a power of two."""
    return 1 << (D - 1).bit_length()


@inlined
def scratch_floats(Dt):
    """How many floats `transform` needs: a multiple of a vector."""
    return max(Dt, LANES)


@inlined
def transform(source, dtype, D, Dt, target):
    """One row into float32 at target, where scratch_floats(Dt) fit; lanes past Dt become zeros.

    Butterflies of strides 1 to 8 stay in a register, the others go through memory. Each lane
    sees the additions of the specification in their order, so the bits are the same.
    """
    for d in range(0, scratch_floats(Dt), LANES):
        store_float32(target + 4 * d, to_all(np.float32(0)))
    widen_row(source, dtype, D, target)
    norm = to_all(np.float32(Dt**-0.5))
    for d in range(0, Dt, LANES):
        x = load_float32(target + 4 * d)
        if Dt > 1:
            x = butterfly1(x)
        if Dt > 2:
            x = butterfly2(x)
        if Dt > 4:
            x = butterfly4(x)
        if Dt > 8:
            x = butterfly8(x)
        store_float32(target + 4 * d, x)
    stride = LANES
    while stride < Dt:
        for start in range(0, Dt, 2 * stride):
            for d in range(start, start + stride, LANES):
                a = load_float32(target + 4 * d)
                b = load_float32(target + 4 * (d + stride))
                store_float32(target + 4 * d, a + b)
                store_float32(target + 4 * (d + stride), a - b)
        stride *= 2
    for d in range(0, Dt, LANES):
        store_float32(target + 4 * d, load_float32(target + 4 * d) * norm)


@kernel
def _hadamard(x, dtype, stride_b, stride_h, stride_l, B, H, L, D, Dt, y):
    blocks = (L + BLOCK - 1) // BLOCK
    for item in prange(B * H * blocks):
        row = np.empty(scratch_floats(Dt), np.float32)
        head, block = divmod(item, blocks)
        b, h = divmod(head, H)
        l = block * BLOCK
        source = x + b * stride_b + h * stride_h + l * stride_l
        target = y + 4 * Dt * (head * L + l)
        _transform_block(source, dtype, stride_l, min(BLOCK, L - l), D, Dt, target, row)


@part
def _transform_block(x, dtype, stride_l, count, D, Dt, y, row):
    floats = row.ctypes.data
    for l in range(count):
        transform(x + l * stride_l, dtype, D, Dt, floats)
        for d in range(0, Dt, LANES):
            z = load_float32(floats + 4 * d)
            store_first_float32(y + 4 * (l * Dt + d), z, Dt - d)
