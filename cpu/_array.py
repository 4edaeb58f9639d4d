"""How a kernel sees an array: dtype code, address, strides in bytes; and rows of any dtype."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ._jit import inlined
from ._simd import (
    load_bfloat16,
    load_first_bfloat16,
    load_first_float16,
    load_first_float32,
    load_float16,
    load_float32,
    store_first_bfloat16,
    store_first_float16,
    store_first_float32,
    store_float32,
)

FLOAT32, FLOAT16, BFLOAT16 = 0, 1, 2
_NAMES = {"float32": FLOAT32, "float16": FLOAT16, "bfloat16": BFLOAT16}
_codes: dict[np.dtype[Any], int] = {}

try:
    from ._address import address as address
except ImportError:  # a source tree whose compiled module was never built

    def address(array: NDArray[Any]) -> int:
        """Of the first element; read-only arrays have one too. The caller keeps the array alive."""
        return array.__array_interface__["data"][0]


LANES = 16  # float32 a vector
LINE = 64  # bytes of a cache line


def dtype_code(array: NDArray[Any]) -> int:
    code = _codes.get(array.dtype)
    if code is None:  # by name, so that nothing here imports ml_dtypes
        code = _codes[array.dtype] = _NAMES[array.dtype.name]
    return code


def with_four_axes(array: NDArray[Any]) -> NDArray[Any]:
    """(..., n) as (B, H, L, n); a view wherever there are at most four axes."""
    missing = 4 - array.ndim
    if missing >= 0:
        return array[(None,) * missing]
    return array.reshape(-1, *array.shape[-3:])


@inlined
def aligned(array):
    """The first line's address in a scratch array that is a line longer than needed.

    It does not keep the array alive.
    """
    return (array.ctypes.data + LINE - 1) // LINE * LINE


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
    """Copy D elements of any dtype into float32, up to a multiple of 16 lanes with zeros."""
    size = item_bytes(dtype)
    whole = D - D % LANES
    for d in range(0, whole, LANES):
        store_float32(target + 4 * d, load_lanes(source + size * d, dtype))
    if whole < D:
        tail = load_first_lanes(source + size * whole, dtype, D - whole)
        store_float32(target + 4 * whole, tail)


@inlined
def narrow_row(source, D, target, dtype):
    """Round D float32, padded to a multiple of 16, into a row of any dtype."""
    size = item_bytes(dtype)
    for d in range(0, D, LANES):
        store_first_lanes(target + size * d, dtype, load_float32(source + 4 * d), D - d)
