"""Arrays as arguments of kernels: names of strides, types of elements, lengths of sequences."""

from __future__ import annotations

import math
from functools import cache

import numpy as np
from numpy.typing import NDArray

from adamas_core.reference.layout import Centers, Fine

from . import _launch
from ._kernels import ELEMENTS
from ._launch import Argument, Array

VECTOR = 16  # bytes of one load, where all rows are aligned to it

# The axes of an array (B, heads, tokens, D) whose strides a kernel takes.
ROWS = ("batch", "head", "token")
HEADS = ("batch", "head")  # where the part of a head is contiguous


def strides(name: str, x: Array, axes: tuple[str, ...] = ROWS) -> dict[str, Argument]:
    """x, and its strides in elements along its first axes, under the names <name>_<axis>."""
    size = x.itemsize
    named: dict[str, Argument] = {name: x}
    for stride_name, step in zip(_stride_names(name, axes), x.strides, strict=False):
        named[stride_name] = step // size  # the kernel knows the strides of the other axes
    return named


@cache
def _stride_names(name: str, axes: tuple[str, ...]) -> tuple[str, ...]:
    """Made once per name, because launches are frequent."""
    return tuple(f"{name}_{axis}" for axis in axes)


def four_axes(x: Array) -> Array:
    """A view (batch, heads, tokens, D). More than four axes are copied if there is no such view."""
    if x.ndim > 4:
        return x.reshape((math.prod(x.shape[:-3]), *x.shape[-3:]))
    return x.reshape((1,) * (4 - x.ndim) + x.shape) if x.ndim < 3 else x[(None,) * (4 - x.ndim)]


def element(x: Array) -> str:
    """The name of x's dtype in common.cuh."""
    return ELEMENTS[x.dtype.name]


def elements_per_load(*arrays: Array) -> int:
    """Elements that one load takes from arrays (..., D) of one dtype.

    VECTOR bytes, or one element where not all rows are aligned to VECTOR bytes.
    """
    n = VECTOR // arrays[0].dtype.itemsize
    fits = all(x.shape[-1] % n == 0 and _aligned(x) for x in arrays)
    return n if fits else 1


def _aligned(x: Array) -> bool:
    """Whether every row of x begins at a multiple of VECTOR bytes."""
    return all(n % VECTOR == 0 for n in (x.data.ptr, *x.strides[:-1]))


def head_thresholds(thresholds: Array) -> dict[str, Argument]:
    """Thresholds (3,) or (heads, 3), with the distance between those of two heads."""
    t = _launch.device().xp.asarray(thresholds, np.float32, order="C")
    return {"thresholds": t, "thresholds_head": 0 if t.ndim == 1 else 3}


def key_planes(planes: Array) -> dict[str, Argument]:
    """Planes (2, B, H_kv, T, 8, P, 8) with their strides."""
    return strides("planes", planes, ("plane", "batch", "head"))


def third_bits(fine: Fine | None) -> dict[str, Argument]:
    """Third bits and their scales with their strides; nothing if there are none."""
    if fine is None:
        return {}
    return strides("bits", fine.bits, HEADS) | strides("finer", fine.scales, HEADS)


def head_centers(centers: Centers, *more: str) -> dict[str, Argument]:
    """The means and scales of centered codes, and `more` of their arrays, with their strides."""
    named: dict[str, Argument] = {}
    for name in ("means", "scales", *more):
        named |= strides(name, getattr(centers, name), HEADS)
    return named


def head_values(
    codes: Array, scales: Array, bases: Array, names: tuple[str, ...] = ("codes", "scales", "bases")
) -> dict[str, Argument]:
    """The codes of values, their scales and bases, with their strides, under three names."""
    named: dict[str, Argument] = {}
    for name, x in zip(names, (codes, scales, bases), strict=True):
        named |= strides(name, x, HEADS)
    return named


def spans(
    B: int, S: int, start: int | Array, count: int | Array | None
) -> tuple[dict[str, Argument], NDArray[np.int64]]:
    """The new tokens of each sequence as arguments, and as (2, B): the first, and their number.

    Each sequence takes its first `count` of S rows, or all if count is not given. start and count
    are ints or (B,), on the host.
    """
    each = np.empty((2, B), np.int64)
    each[0], each[1] = start, S if count is None else count
    if B and (each == each[:, :1]).all():
        return {"start": int(each[0, 0]), "count": int(each[1, 0])}, each
    return {"spans": _launch.device().xp.asarray(each)}, each


def sequence_lengths(length: int | Array) -> dict[str, Argument]:
    """Lengths (B,), given on the host, with the largest of them; or one length for all."""
    if isinstance(length, (int, np.integer)):
        return {"length": int(length)}
    lengths = _launch.device().xp.asarray(length, np.int32)
    return {"lengths": lengths, "length": longest(length)}


def longest(length: int | Array) -> int:
    """The largest of lengths (B,), or the one length."""
    return int(np.max(length, initial=0))
