"""Weighted distances of a tile by table look-ups, for CPUs with AVX-512 VBMI.

A distance is a sum over the bits of a key's planes. A bit of the low plane adds w where it is not
the sign of the query, and a bit of the high plane adds 2 w. Four neighbouring bits, a nibble, index
a table of 16 sums. A word of a plane has 8 bytes, so its low nibbles have 8 tables, 128 bytes
together. One instruction looks 64 nibbles, those of 8 tokens, up in 128 bytes.

A byte holds the sum of 2 P look-ups in one plane: at most 8 P wmax <= 255.
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

SIZES = (1, 2, 4)  # values of P that have look-ups
TABLE_BYTES = 256  # per word of a query: the tables of its low nibbles, then of its high ones

_WORDS = U64x8.ir
_BYTES = ir.VectorType(ir.IntType(8), 64)


@inlined
def usable(P, weights):
    """Whether look-ups serve queries of P words and `weights` weight planes, and are faster."""
    return AVAILABLE and P in SIZES and weights >= 2 and P * ((1 << weights) - 1) <= 31


def _indices(builder: Any, words: Any) -> tuple[Any, Any]:
    """Indices of the low and of the high nibbles of 8 words in their tables, one byte each."""
    low = constant(_WORDS, 0x0F0F0F0F0F0F0F0F)
    position = constant(_WORDS, 0x7060504030201000)  # each byte of a word has its own table
    high = builder.lshr(words, constant(_WORDS, 4))
    return tuple(builder.or_(builder.and_(x, low), position) for x in (words, high))


def _look_up(builder: Any, index: Any, tables: Any) -> Any:
    """Look 64 bytes of index up in the 128 bytes at tables."""
    halves = [load(builder, builder.add(tables, I64(64 * i)), _WORDS) for i in range(2)]
    first, second = (builder.bitcast(x, _BYTES) for x in halves)
    name = "llvm.x86.avx512.vpermi2var.qi.512"
    return call(builder, name, _BYTES, first, builder.bitcast(index, _BYTES), second)


def _sum(builder: Any, terms: list[Any]) -> Any:
    """The sum of all terms over the bytes of each word. The terms' sum fits into a byte."""
    total = terms[0]
    for term in terms[1:]:
        total = builder.add(total, term)
    zero = ir.Constant(_BYTES, None)
    return call(builder, "llvm.x86.avx512.psad.bw.512", _WORDS, total, zero)


def _look_up_tile(P: int) -> Any:
    groups = 4 // P  # groups of 8 tokens at a time: their indices fill 16 registers, half of all

    @operation(types.void, *[types.int64] * 7)
    def look_up_tile(
        builder: Any,
        high: Any,
        low: Any,
        tables: Any,
        table_stride: Any,
        rows: Any,
        target: Any,
        target_stride: Any,
    ) -> None:
        """Distances of the 64 tokens of a tile to `rows` queries. Strides are bytes per query."""
        for first in range(0, 8, groups):
            indices = {}
            for group, p in product(range(first, first + groups), range(P)):
                for plane, words in enumerate((high, low)):
                    at = builder.add(words, I64(64 * (P * group + p)))
                    halves = _indices(builder, load(builder, at, _WORDS))
                    for half, index in enumerate(halves):
                        indices[group, plane, p, half] = index
            with cgutils.for_range(builder, rows) as loop:
                own = builder.add(tables, builder.mul(table_stride, loop.index))
                distances = builder.add(target, builder.mul(target_stride, loop.index))
                found = {
                    at: _look_up(builder, index, builder.add(own, I64(256 * at[2] + 128 * at[3])))
                    for at, index in indices.items()
                }
                for group in range(first, first + groups):
                    high_sum, low_sum = (
                        _sum(builder, [x for at, x in found.items() if at[:2] == (group, plane)])
                        for plane in range(2)
                    )
                    distance = builder.add(builder.add(high_sum, high_sum), low_sum)
                    words = builder.trunc(distance, ir.VectorType(I16, 8))
                    store(builder, builder.add(distances, I64(16 * group)), words)

    return look_up_tile


look_up_tile1, look_up_tile2, look_up_tile4 = map(_look_up_tile, SIZES)

U8x16 = Vector(ir.IntType(8), 16)  # a table: the cost of each value of four bits


@operation(U8x16)
def zero_costs(builder: Any) -> Any:
    return ir.Constant(U8x16.ir, None)


@operation(U8x16, U8x16, types.uint64, types.uint64)
def twice_plus_plane(builder: Any, costs: Any, sign: Any, weight: Any) -> Any:
    """Twice the costs, plus the low bits of `weight` at which the nibble differs from the sign."""
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
    """The tables of a query with a sign plane and `weights` planes, most significant first."""
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
