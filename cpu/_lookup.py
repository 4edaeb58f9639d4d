"""Weighted distances by table look-ups, for CPUs that look 64 bytes up at once (AVX-512 VBMI).

The distance is a sum over the bits of a key's planes: a bit of the low plane that is not the
corner's adds w, one of the high plane 2 w. Four neighbouring bits index a table of 16 sums. A word
of a plane has 8 bytes, so the tables of all its low nibbles are 128 bytes, which is what one
instruction looks up in: 64 nibbles, of 8 tokens, at a time.

A byte holds the sum of what 2 P look-ups give for one plane: at most 8 P wmax <= 255.
"""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numba.core.registry import cpu_target

from ._jit import inlined
from ._simd import (
    I16,
    I64,
    U64x8,
    Vector,
    call,
    constant,
    load,
    load_uint64,
    operation,
    splat,
    store,
)

AVAILABLE = "+avx512vbmi," in cpu_target.target_context.codegen().magic_tuple()[2]

SIZES = (1, 2, 4)  # P that there are look-ups for
TABLE_BYTES = 256  # of a word of a query: the tables of its low nibbles, and of its high ones

_WORDS = U64x8.ir
_BYTES = ir.VectorType(ir.IntType(8), 64)


@inlined
def usable(P, weights):
    """Whether look-ups serve queries of P words and so many weight planes, and pay for them."""
    return AVAILABLE and P in SIZES and weights >= 2 and P * ((1 << weights) - 1) <= 31


def _indices(builder: Any, words: Any) -> tuple[Any, Any]:
    """Where the low and the high nibbles of 8 words stand in their tables, a byte each."""
    low = constant(_WORDS, 0x0F0F0F0F0F0F0F0F)
    position = constant(_WORDS, 0x7060504030201000)  # bytes of a word have tables of their own
    high = builder.lshr(words, constant(_WORDS, 4))
    return tuple(builder.or_(builder.and_(x, low), position) for x in (words, high))


def _look_up(builder: Any, index: Any, tables: Any) -> Any:
    """What 64 bytes of index find in the 128 bytes at tables."""
    halves = [load(builder, builder.add(tables, I64(64 * i)), _WORDS) for i in range(2)]
    first, second = (builder.bitcast(x, _BYTES) for x in halves)
    name = "llvm.x86.avx512.vpermi2var.qi.512"
    return call(builder, name, _BYTES, first, builder.bitcast(index, _BYTES), second)


def _sum(builder: Any, terms: list[Any]) -> Any:
    """The sum over the bytes of each word, of all terms; a byte of the terms' sum is below 256."""
    total = terms[0]
    for term in terms[1:]:
        total = builder.add(total, term)
    zero = ir.Constant(_BYTES, None)
    return call(builder, "llvm.x86.avx512.psad.bw.512", _WORDS, total, zero)


def _tile(P: int, planes: int) -> Any:
    groups = 4 // P  # of 8 tokens at a time: their indices fill 16 registers, the half of all

    @operation(types.void, *[types.int64] * 7)
    def look_up_tile(
        builder: Any, high: Any, low: Any, tables: Any, step: Any, rows: Any, target: Any, gap: Any
    ) -> None:
        """Distances of the 64 tokens of a tile to `rows` queries.

        A query's tables stand `step` bytes behind those before it, its distances `gap` bytes.
        """
        for first in range(0, 8, groups):
            indices = {}
            for group, p in product(range(first, first + groups), range(P)):
                for plane, words in enumerate((high, low)[:planes]):
                    at = builder.add(words, I64(64 * (P * group + p)))
                    halves = _indices(builder, load(builder, at, _WORDS))
                    for half, index in enumerate(halves):
                        indices[group, plane, p, half] = index
            with cgutils.for_range(builder, rows) as loop:
                own = builder.add(tables, builder.mul(step, loop.index))
                distances = builder.add(target, builder.mul(gap, loop.index))
                found = {
                    at: _look_up(builder, index, builder.add(own, I64(256 * at[2] + 128 * at[3])))
                    for at, index in indices.items()
                }
                for group in range(first, first + groups):
                    high_sum, *low_sum = (
                        _sum(builder, [x for at, x in found.items() if at[:2] == (group, plane)])
                        for plane in range(planes)
                    )
                    distance = high_sum
                    for x in low_sum:
                        distance = builder.add(builder.add(high_sum, high_sum), x)
                    words = builder.trunc(distance, ir.VectorType(I16, 8))
                    store(builder, builder.add(distances, I64(16 * group)), words)

    return look_up_tile


look_up_tile1, look_up_tile2, look_up_tile4 = (_tile(P, 2) for P in SIZES)
look_up_high1, look_up_high2, look_up_high4 = (_tile(P, 1) for P in SIZES)


U8x16 = Vector(ir.IntType(8), 16)  # a table: what each value of four bits costs


@operation(U8x16)
def zero_costs(builder: Any) -> Any:
    return ir.Constant(U8x16.ir, None)


@operation(U8x16, U8x16, types.uint64, types.uint64)
def twice_plus_plane(builder: Any, costs: Any, sign: Any, weight: Any) -> Any:
    """2 costs + how many of the low four bits of `weight` stand where a nibble is not the sign."""
    nibbles = ir.Constant(U8x16.ir, list(range(16)))
    octets = [builder.trunc(word, ir.IntType(8)) for word in (sign, weight)]
    sign, weight = (splat(builder, U8x16.ir, octet) for octet in octets)
    weight = builder.and_(weight, constant(U8x16.ir, 15))
    bits = builder.and_(builder.xor(nibbles, sign), weight)
    more = call(builder, "llvm.ctpop.v16i8", U8x16.ir, bits)
    return builder.add(builder.add(costs, costs), more)


@operation(types.void, types.int64, U8x16)
def store_costs(builder: Any, address: Any, costs: Any) -> None:
    pointer = builder.inttoptr(address, U8x16.ir.as_pointer())
    builder.store(costs, pointer, align=1)


@inlined
def store_tables(query, P, weights, tables):
    """The tables of a query of a sign plane and `weights` planes, most significant first."""
    for p in range(P):
        sign = load_uint64(query + 8 * p)
        for nibble in range(16):
            shift = np.uint64(4 * nibble)
            costs = zero_costs()
            for plane in range(1, weights + 1):
                word = load_uint64(query + 8 * (plane * P + p))
                costs = twice_plus_plane(costs, sign >> shift, word >> shift)
            byte, half = divmod(nibble, 2)
            store_costs(tables + TABLE_BYTES * p + 128 * half + 16 * byte, costs)
