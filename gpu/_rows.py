"""Rows of head_dim coordinates as the kernels take them: four axes, strides, a warp a row."""

from __future__ import annotations

import math

import numpy as np

from . import _launch
from ._kernels import ELEMENTS, VALUES
from ._launch import Array

LANES = 32
VECTOR = 16  # bytes of a load, where rows are aligned to it
THREADS = 128  # four rows a block: small blocks leave no multiprocessor idle behind a long one


def padded(D: int) -> int:
    """Dt: D rounded up to a power of two."""
    return 1 << (D - 1).bit_length()


def words(D: int) -> int:
    """P: words a bit plane."""
    return -(-padded(D) // 64)


def per_lane(D: int) -> int:
    """N of rows.cuh: coordinates a lane holds."""
    n = max(padded(D) // LANES, 1)
    assert n in VALUES, f"head_dim {D} is above 2048"
    return n


def element(x: Array) -> str:
    """The name that common.cuh gives to x's dtype."""
    return ELEMENTS[x.dtype.name]


def scale(D: int) -> float:
    """Of the transform; launching rounds it to float32."""
    return float(padded(D) ** -0.5)


def with_four_axes(x: Array) -> Array:
    """A view (batch, heads, tokens, D); more than four axes are copied if they must be."""
    if x.ndim > 4:
        return x.reshape((math.prod(x.shape[:-3]), *x.shape[-3:]))
    return x.reshape((1,) * (4 - x.ndim) + x.shape) if x.ndim < 3 else x[(None,) * (4 - x.ndim)]


def leading_strides(x: Array) -> tuple[int, ...]:
    """Strides of all axes but the last, in elements."""
    return tuple(step // x.itemsize for step in x.strides[:-1])


def limits(thresholds: Array) -> tuple[Array, int]:
    """Thresholds (3,) or (heads, 3) on the device, and how far apart those of two heads lie."""
    t = _launch.device().xp.asarray(thresholds, np.float32, order="C")
    return t, 0 if t.ndim == 1 else 3


def blocks(rows: int) -> tuple[int]:
    """The grid of a launch with a warp a row."""
    return (-(-rows * LANES // THREADS),)


def loaded_at_once(*arrays: Array) -> int:
    """Elements of arrays (..., D) of one dtype: VECTOR bytes, or 1 where not all rows allow it."""
    n = VECTOR // arrays[0].dtype.itemsize
    fits = all(x.shape[-1] % n == 0 and _aligned(x) for x in arrays)
    return n if fits else 1


def _aligned(x: Array) -> bool:
    """Whether every row of x begins at a multiple of VECTOR bytes."""
    return all(n % VECTOR == 0 for n in (x.data.ptr, *x.strides[:-1]))
