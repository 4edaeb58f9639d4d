"""The weighted sum of values that are read back from their codes."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.core import cgutils, types

from adamas_core.reference.layout import TILE

from ._array import LINE
from ._float_rows import load_first_float16, load_float16
from ._jit import inlined
from ._simd import (
    F32,
    I1,
    I16,
    I64,
    F32x16,
    constant,
    load_int32,
    load_scalar_float32,
    multiply_add,
    operation,
    prefetch,
    splat,
    store,
)
from .center import load_scale

AHEAD = 16  # tokens asked for before they are read


def _sum_block(vectors: int) -> Any:
    """The weighted sum over tokens of up to 128 coordinates, in registers."""

    lines = range(0, 32 * vectors, LINE)  # of a mean

    @operation(types.void, *[types.int64] * 9)
    def sum_block(
        builder: Any,
        tokens: Any,
        weights: Any,
        n: Any,
        codes: Any,
        scales: Any,
        means: Any,
        P: Any,
        Dt: Any,
        sums: Any,
    ) -> None:
        """sums (16 * vectors,) = sum of w_i (s_i (code_i - 1.5) + mean_i), in float32.

        The addresses are those of token 0. The words of a token are P high ones, then P low ones.
        `codes` and `means` begin at the block's first coordinate.
        """
        zero = constant(F32x16.ir, 0.0)
        on_codes, on_means = (
            [cgutils.alloca_once_value(builder, zero) for _ in range(vectors)] for _ in range(2)
        )
        last = builder.sub(n, I64(1))
        to_low, row, mean_row = (builder.mul(x, I64(y)) for x, y in ((P, 8), (P, 16), (Dt, 2)))

        def at(i: Any) -> tuple[Any, Any, Any]:
            """Where the code, the scale and the mean of token i are."""
            token = load_int32(builder, builder.add(tokens, builder.mul(i, I64(4))))
            token = builder.zext(token, I64)
            tile = builder.udiv(token, I64(TILE))
            return (
                builder.add(codes, builder.mul(token, row)),
                builder.add(scales, token),
                builder.add(means, builder.mul(tile, mean_row)),
            )

        with cgutils.for_range(builder, n) as loop:
            ahead = builder.add(loop.index, I64(AHEAD))
            ahead = builder.select(builder.icmp_signed("<", ahead, last), ahead, last)
            code, byte, mean = at(ahead)
            for address in (code, byte, *(builder.add(mean, I64(x)) for x in lines)):
                prefetch(builder, address)
            code, byte, mean = at(loop.index)
            offset = builder.mul(loop.index, I64(4))
            weight = load_scalar_float32(builder, builder.add(weights, offset))
            share = builder.fmul(weight, load_scale(builder, byte))
            _add_code(builder, on_codes, share, code, to_low)
            _add_mean(builder, on_means, weight, mean, Dt)
        for v in range(vectors):
            y = builder.fadd(builder.load(on_codes[v]), builder.load(on_means[v]))
            store(builder, builder.add(sums, I64(64 * v)), y)

    return sum_block


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


def _add_mean(builder: Any, totals: Any, weight: Any, mean: Any, Dt: Any) -> None:
    """Add `weight` times a mean of Dt float16. A single vector may have fewer than 16 of them."""
    weight = splat(builder, F32x16.ir, weight)
    for v, total in enumerate(totals):
        place = builder.add(mean, I64(32 * v))
        y = (
            load_float16(builder, place)
            if len(totals) > 1
            else load_first_float16(builder, place, Dt)
        )
        builder.store(multiply_add(builder, weight, y, builder.load(total)), total)


def _mask_at(builder: Any, address: Any) -> Any:
    """Sixteen bits of memory as a mask."""
    lanes = builder.load(builder.inttoptr(address, I16.as_pointer()), align=2)
    return builder.bitcast(lanes, ir.VectorType(I1, 16))


sum_block1, sum_block2, sum_block4, sum_block8 = map(_sum_block, (1, 2, 4, 8))


@inlined
def sum_codes(step, b, h, tokens, n, weights, sums):
    """sums (Dt,) = the weighted sum of the transformed values that codes stand for."""
    P, Dt = step.P, step.Dt
    codes = step.v_codes + b * step.v_codes_b + h * step.v_codes_h
    scales = step.v_scales + b * step.v_scales_b + h * step.v_scales_h
    means = step.v_means + b * step.v_means_b + h * step.v_means_h
    if Dt <= 16:
        sum_block1(tokens, weights, n, codes, scales, means, P, Dt, sums)
    elif Dt == 32:
        sum_block2(tokens, weights, n, codes, scales, means, P, Dt, sums)
    elif Dt == 64:
        sum_block4(tokens, weights, n, codes, scales, means, P, Dt, sums)
    else:
        for d in range(0, Dt, 128):
            at = codes + d // 8, means + 2 * d
            sum_block8(tokens, weights, n, at[0], scales, at[1], P, Dt, sums + 4 * d)
