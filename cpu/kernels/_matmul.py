"""Products of small float32 matrices in registers: the inner loops of dense attention."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.core import cgutils, types

from ._jit import inlined
from ._simd import F32, I64, F32x16, call, load, operation, splat, store

VECTOR_BYTES = 64


def _block(rows: int, vectors: int) -> Any:
    """c[r, :] += sum over i < depth of a[r, i] b[i, :], for `rows` rows of 16 * vectors columns.

    Element a[r, i] lies at a + r * a_row + i * a_column. Rows of b and c have no gaps. All of c
    stays in rows * vectors registers, and a row of b in `vectors` more.
    """

    @operation(types.void, *[types.int64] * 6)
    def block(builder: Any, c: Any, a: Any, a_row: Any, a_column: Any, b: Any, depth: Any) -> None:
        vector = F32x16.ir

        def plus(base: Any, index: Any, stride: Any) -> Any:
            return builder.add(base, builder.mul(index, stride))

        width = I64(VECTOR_BYTES * vectors)
        sums = [[cgutils.alloca_once(builder, vector) for _ in range(vectors)] for _ in range(rows)]
        for row in sums:
            for sum_ in row:
                builder.store(ir.Constant(vector, None), sum_)
        with cgutils.for_range(builder, depth, intp=I64) as loop:
            at = plus(b, loop.index, width)
            columns = [
                load(builder, builder.add(at, I64(VECTOR_BYTES * j)), vector)
                for j in range(vectors)
            ]
            for r, row in enumerate(sums):
                at = plus(plus(a, I64(r), a_row), loop.index, a_column)
                scalar = builder.load(builder.inttoptr(at, F32.as_pointer()), align=4)
                factor = splat(builder, vector, scalar)
                for column, sum_ in zip(columns, row, strict=True):
                    old = builder.load(sum_)
                    new = call(builder, "llvm.fmuladd.v16f32", vector, factor, column, old)
                    builder.store(new, sum_)
        for r, row in enumerate(sums):
            for j, sum_ in enumerate(row):
                at = builder.add(plus(c, I64(r), width), I64(VECTOR_BYTES * j))
                store(builder, at, builder.fadd(load(builder, at, vector), builder.load(sum_)))

    return block


# Wide blocks are for many queries. Narrow ones are for queries that fit into one vector of columns.
_block_4x4, _block_1x4 = _block(4, 4), _block(1, 4)
_block_8x1, _block_1x1 = _block(8, 1), _block(1, 1)


@inlined
def add_matmul(c, a, a_row, a_column, rows, b, depth, vectors):
    """c (rows, 16 * vectors) += a (rows, depth) b (depth, 16 * vectors); vectors is 1 or 4.

    Each call adds up its terms before it adds the sum to c. So rounding errors stay smaller than
    those of one long sum.
    """
    at_once = 4 if vectors == 4 else 8
    whole = rows - rows % at_once
    for r in range(0, whole, at_once):
        if vectors == 4:
            _block_4x4(c + 256 * r, a + a_row * r, a_row, a_column, b, depth)
        else:
            _block_8x1(c + 64 * r, a + a_row * r, a_row, a_column, b, depth)
    for r in range(whole, rows):
        if vectors == 4:
            _block_1x4(c + 256 * r, a + a_row * r, a_row, a_column, b, depth)
        else:
            _block_1x1(c + 64 * r, a + a_row * r, a_row, a_column, b, depth)
