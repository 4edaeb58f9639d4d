"""Distances of a tile by popcounts of bit planes, on any CPU.

A vector holds eight words, one of each token of a group.
"""

from __future__ import annotations

import operator
from typing import Any

from llvmlite import ir
from numba.core import types

from ._jit import inlined
from ._simd import I16, I64, U64x8, call, load, operation, splat, store


@operation(U64x8, types.int64)
def load_words(builder: Any, address: Any) -> Any:
    """Eight words of keys. No kernel that scores them writes them, so LLVM may load them once."""
    words = load(builder, address, U64x8.ir)
    words.set_metadata("invariant.load", builder.module.add_metadata([]))
    return words


@operation(U64x8, types.int64)
def load_word_to_all(builder: Any, address: Any) -> Any:
    """One word of a query in all lanes. It is not written either while keys are scored."""
    word = builder.load(builder.inttoptr(address, I64.as_pointer()), align=8)
    word.set_metadata("invariant.load", builder.module.add_metadata([]))
    return splat(builder, U64x8.ir, word)


@operation(U64x8)
def zero_words(builder: Any) -> Any:
    return ir.Constant(U64x8.ir, None)


@operation(U64x8, U64x8, operators=[operator.invert])
def _invert(builder: Any, a: Any) -> Any:
    return builder.not_(a)


@operation(U64x8, U64x8, U64x8, operators=[operator.xor])
def _xor(builder: Any, a: Any, b: Any) -> Any:
    return builder.xor(a, b)


@operation(U64x8, U64x8, U64x8, operators=[operator.and_])
def _and(builder: Any, a: Any, b: Any) -> Any:
    return builder.and_(a, b)


@operation(U64x8, U64x8, U64x8, operators=[operator.add, operator.iadd])
def _add_words(builder: Any, a: Any, b: Any) -> Any:
    return builder.add(a, b)


@operation(U64x8, U64x8)
def popcount(builder: Any, a: Any) -> Any:
    return call(builder, "llvm.ctpop.v8i64", U64x8.ir, a)


@operation(types.void, types.int64, U64x8)
def store_as_uint16(builder: Any, address: Any, a: Any) -> None:
    store(builder, address, builder.trunc(a, ir.VectorType(I16, 8)))


@inlined
def manhattan_tile(high, low, query, P, distances):
    """Manhattan distances of a tile's 64 tokens to the codes of a query.

    |c - e| for 2-bit codes: s marks an odd difference, and d a difference of two or more.
    """
    for group in range(8):
        ones = zero_words()
        twos = zero_words()
        for p in range(P):
            at = 64 * (group * P + p)
            query_high = load_word_to_all(query + 8 * p)
            query_low = load_word_to_all(query + 8 * (P + p))
            s = load_words(low + at) ^ query_low
            d = (load_words(high + at) ^ query_high) & ~(s & (query_high ^ query_low))
            ones += popcount(s)
            twos += popcount(d)
        store_as_uint16(distances + 16 * group, ones + twos + twos)


@inlined
def weighted_tile(high, low, query, P, weights, distances):
    """Weighted distances of a tile's 64 tokens to a query.

    The query has a sign plane and `weights` planes, most significant first. With three of these a
    distance is at most 21 Dt <= 43008, with seven 127 * 3 * Dt. The words hold that, and their low
    16 bits are what the specification's uint16 keeps.
    """
    for group in range(8):
        total = zero_words()
        for plane in range(1, weights + 1):
            ones = zero_words()
            twos = zero_words()
            for p in range(P):
                at = 64 * (group * P + p)
                sign = load_word_to_all(query + 8 * p)
                weight = load_word_to_all(query + 8 * (plane * P + p))
                twos += popcount((load_words(high + at) ^ sign) & weight)
                ones += popcount((load_words(low + at) ^ sign) & weight)
            total += twos
            total += total + ones
        store_as_uint16(distances + 16 * group, total)
