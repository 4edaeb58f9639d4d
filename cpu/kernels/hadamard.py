"""Walsh-Hadamard transform along head_dim."""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir

from .._records import Transform
from ._float_rows import LANES, widen_row
from ._jit import inlined, opaque
from ._memory import loop_at, reader
from ._simd import (
    F32x16,
    I32x16,
    load_float32,
    operation,
    store_first_float32,
    store_float32,
    to_all,
)

BLOCK_ROWS = 64  # rows that a thread takes at a time

transform_at = reader(Transform)


def _butterfly(stride: int) -> Any:
    @operation(F32x16, F32x16)
    def butterfly(builder: Any, x: Any) -> Any:
        """(a, b) -> (a + b, a - b) for lanes `stride` apart; a - b is made as a + (-b)."""
        index = ir.Constant(I32x16, [i ^ stride for i in range(LANES)])
        partner = builder.shuffle_vector(x, x, index)
        signs = ir.Constant(I32x16, [0x80000000 if i & stride else 0 for i in range(LANES)])
        signed = builder.bitcast(builder.xor(builder.bitcast(x, I32x16), signs), x.type)
        return builder.fadd(partner, signed)

    return butterfly


butterfly1, butterfly2, butterfly4, butterfly8 = map(_butterfly, (1, 2, 4, 8))


@inlined
def scratch_floats(Dt):
    """Number of floats that `transform` needs: whole vectors."""
    return max(Dt, LANES)


@inlined
def transform(source, dtype, D, Dt, target):
    """Transform one row into float32 at target, which has room for scratch_floats(Dt).

    Lanes after Dt become zeros. Butterflies of strides 1 to 8 stay in a register, the others go
    through memory. Each lane has the additions of the specification in their order, so the bits are
    equal.
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


@opaque
def plan_transform(at):
    loop = loop_at(at)
    record = transform_at(loop.record)
    loop.items = record.B * record.H * ((record.L + BLOCK_ROWS - 1) // BLOCK_ROWS)
    loop.scratch = 4 * scratch_floats(record.Dt)
    return 0


@opaque
def transform_block(at, item, row):
    """Up to BLOCK_ROWS rows of one head. `row` has room for one of them."""
    record = transform_at(at)
    L, D, Dt = record.L, record.D, record.Dt
    dtype, stride = record.dtype, record.x_l
    head, block = divmod(item, (L + BLOCK_ROWS - 1) // BLOCK_ROWS)
    b, h = divmod(head, record.H)
    first = block * BLOCK_ROWS
    source = record.x + b * record.x_b + h * record.x_h
    target = record.y + 4 * Dt * head * L
    for l in range(first, min(first + BLOCK_ROWS, L)):
        transform(source + l * stride, dtype, D, Dt, row)
        for d in range(0, Dt, LANES):
            z = load_float32(row + 4 * d)
            store_first_float32(target + 4 * (l * Dt + d), z, Dt - d)
    return 0
