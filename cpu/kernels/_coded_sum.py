"""The weighted sum of values that are read back from their codes."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.core import cgutils, types

from ._jit import inlined
from ._simd import (
    F32,
    I1,
    I8,
    I16,
    I64,
    F32x16,
    constant,
    load_int32,
    load_scalar_float32,
    operation,
    prefetch,
    splat,
    store,
)
from .center import load_scale

AHEAD = 16  # tokens asked for before they are read


def _sum_block(vectors: int) -> Any:
    """The weighted sum over tokens of up to 128 coordinates, in registers."""

    @operation(types.void, *[types.int64] * 7)
    def sum_block(
        builder: Any,
        tokens: Any,
        weights: Any,
        n: Any,
        codes: Any,
        scales: Any,
        P: Any,
        sums: Any,
    ) -> None:
        """sums (16 * vectors,) = sum of w_i s_i (code_i - 1.5), in float32.

        The addresses are those of token 0. The words of a token are P high ones, then P low ones.
        `codes` begins at the block's first coordinate.
        """
        zero = constant(F32x16.ir, 0.0)
        totals = [cgutils.alloca_once_value(builder, zero) for _ in range(vectors)]
        last = builder.sub(n, I64(1))
        to_low, row = (builder.mul(P, I64(size)) for size in (8, 16))

        def at(i: Any) -> tuple[Any, Any]:
            """Where the code and the scale of token i are."""
            token = load_int32(builder, builder.add(tokens, builder.mul(i, I64(4))))
            token = builder.zext(token, I64)
            return builder.add(codes, builder.mul(token, row)), builder.add(scales, token)

        with cgutils.for_range(builder, n) as loop:
            ahead = builder.add(loop.index, I64(AHEAD))
            ahead = builder.select(builder.icmp_signed("<", ahead, last), ahead, last)
            for address in at(ahead):
                prefetch(builder, address)
            code, byte = at(loop.index)
            offset = builder.mul(loop.index, I64(4))
            weight = load_scalar_float32(builder, builder.add(weights, offset))
            share = builder.fmul(weight, _load_scale(builder, byte))
            _add_code(builder, totals, share, code, to_low)
        for v, total in enumerate(totals):
            store(builder, builder.add(sums, I64(64 * v)), builder.load(total))

    return sum_block


def _load_scale(builder: Any, address: Any) -> Any:
    """The scale of a value's byte, which is 0 for the byte 0."""
    byte = builder.load(builder.inttoptr(address, I8.as_pointer()), align=1)
    return builder.select(
        builder.icmp_unsigned("==", byte, I8(0)), F32(0), load_scale(builder, address)
    )


def _add_code(builder: Any, totals: Any, share: Any, code: Any, to_low: Any) -> None:
    """Add `share` times (the code of a token - 1.5). Its low words lie to_low bytes after `code`.

    The levels have both signs, so that sums stay small, and their rounding errors too. An error
    that all coordinates have in common would go to one coordinate of the output.
    """
    vector = F32x16.ir
    inner, outer = (splat(builder, vector, builder.fmul(share, F32(level))) for level in (0.5, 1.5))
    for v, total in enumerate(totals):
        high, low = (
            _mask_at(builder, builder.add(words, I64(2 * v)))
            for words in (code, builder.add(code, to_low))
        )
        x, size = builder.load(total), builder.select(builder.xor(high, low), inner, outer)
        builder.store(builder.select(high, builder.fadd(x, size), builder.fsub(x, size)), total)


def _mask_at(builder: Any, address: Any) -> Any:
    """Sixteen bits of memory as a mask."""
    lanes = builder.load(builder.inttoptr(address, I16.as_pointer()), align=2)
    return builder.bitcast(lanes, ir.VectorType(I1, 16))


sum_block1, sum_block2, sum_block4, sum_block8 = map(_sum_block, (1, 2, 4, 8))


@inlined
def sum_codes(step, b, h, tokens, n, weights, sums):
    """sums (Dvt,) = the weighted sum of the transformed rests that codes stand for."""
    P, Dt = step.Pv, step.Dvt
    codes = step.v_codes + b * step.v_codes_b + h * step.v_codes_h
    scales = step.v_scales + b * step.v_scales_b + h * step.v_scales_h
    if Dt <= 16:
        sum_block1(tokens, weights, n, codes, scales, P, sums)
    elif Dt == 32:
        sum_block2(tokens, weights, n, codes, scales, P, sums)
    elif Dt == 64:
        sum_block4(tokens, weights, n, codes, scales, P, sums)
    else:
        for d in range(0, Dt, 128):
            sum_block8(tokens, weights, n, codes + d // 8, scales, P, sums + 4 * d)
