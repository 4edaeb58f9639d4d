"""Rows of any float dtype: sixteen lanes at a time, widened to float32 and rounded back."""

from __future__ import annotations

from typing import Any

from numba.core import types

from .._array import FLOAT16, FLOAT32
from ._half import narrow_half, widen_half
from ._jit import inlined
from ._simd import (
    F32x16,
    I16x16,
    I32x16,
    constant,
    load,
    load_first,
    load_first_float32,
    load_float32,
    operation,
    store_first,
    store_first_float32,
    store_float32,
)

LANES = 16  # float32 per vector


def _widen_bfloat16(builder: Any, bits: Any) -> Any:
    word = builder.shl(builder.zext(bits, I32x16), constant(I32x16, 16))
    return builder.bitcast(word, F32x16.ir)


def _narrow_bfloat16(builder: Any, x: Any) -> Any:
    """Round to nearest even by adding just under half a unit. NaN stays NaN."""
    word = builder.bitcast(x, I32x16)
    odd = builder.and_(builder.lshr(word, constant(I32x16, 16)), constant(I32x16, 1))
    rounded = builder.add(word, builder.add(odd, constant(I32x16, 0x7FFF)))
    quiet = builder.or_(word, constant(I32x16, 0x400000))
    rounded = builder.select(builder.fcmp_unordered("uno", x, x), quiet, rounded)
    return builder.trunc(builder.lshr(rounded, constant(I32x16, 16)), I16x16)


@operation(F32x16, types.int64)
def load_float16(builder: Any, address: Any) -> Any:
    return widen_half(builder, load(builder, address, I16x16))


@operation(F32x16, types.int64, types.int64)
def load_first_float16(builder: Any, address: Any, count: Any) -> Any:
    return widen_half(builder, load_first(builder, address, I16x16, count))


@operation(F32x16, types.int64)
def load_bfloat16(builder: Any, address: Any) -> Any:
    return _widen_bfloat16(builder, load(builder, address, I16x16))


@operation(F32x16, types.int64, types.int64)
def load_first_bfloat16(builder: Any, address: Any, count: Any) -> Any:
    return _widen_bfloat16(builder, load_first(builder, address, I16x16, count))


@operation(types.void, types.int64, F32x16, types.int64)
def store_first_float16(builder: Any, address: Any, x: Any, count: Any) -> None:
    store_first(builder, address, narrow_half(builder, x), count)


@operation(types.void, types.int64, F32x16, types.int64)
def store_first_bfloat16(builder: Any, address: Any, x: Any, count: Any) -> None:
    store_first(builder, address, _narrow_bfloat16(builder, x), count)


@inlined
def whole_lanes(n):
    """n rounded up to whole vectors."""
    return (n + LANES - 1) // LANES * LANES


@inlined
def item_bytes(dtype):
    return 4 if dtype == FLOAT32 else 2


@inlined
def load_lanes(at, dtype):
    """Sixteen elements as float32."""
    if dtype == FLOAT32:
        return load_float32(at)
    if dtype == FLOAT16:
        return load_float16(at)
    return load_bfloat16(at)


@inlined
def load_first_lanes(at, dtype, count):
    """The first `count` of sixteen elements as float32, zeros in the other lanes."""
    if dtype == FLOAT32:
        return load_first_float32(at, count)
    if dtype == FLOAT16:
        return load_first_float16(at, count)
    return load_first_bfloat16(at, count)


@inlined
def store_first_lanes(at, dtype, x, count):
    """Round once to the dtype, to nearest even, and store the first `count` lanes."""
    if dtype == FLOAT32:
        store_first_float32(at, x, count)
    elif dtype == FLOAT16:
        store_first_float16(at, x, count)
    else:
        store_first_bfloat16(at, x, count)


@inlined
def widen_row(source, dtype, D, target):
    """Copy D elements of any dtype as float32. Zeros fill the last vector."""
    size = item_bytes(dtype)
    whole = D - D % LANES
    for d in range(0, whole, LANES):
        store_float32(target + 4 * d, load_lanes(source + size * d, dtype))
    if whole < D:
        rest = load_first_lanes(source + size * whole, dtype, D - whole)
        store_float32(target + 4 * whole, rest)


@inlined
def narrow_row(source, D, target, dtype):
    """Round D float32, in whole vectors, into a row of any dtype."""
    size = item_bytes(dtype)
    for d in range(0, D, LANES):
        store_first_lanes(target + size * d, dtype, load_float32(source + 4 * d), D - d)
