"""float16 by integers, as on a processor that has no instruction for it."""

from __future__ import annotations

import numba
import numpy as np
from numba.core import types
from numpy.testing import assert_array_equal

from adamas_core.cpu._array import address_of
from adamas_core.cpu.kernels import _half
from adamas_core.cpu.kernels._simd import F32x16, I16x16, load, operation, store


@operation(types.void, types.int64, types.int64)
def _widen(builder, source, target):
    store(builder, target, _half.widen_by_integers(builder, load(builder, source, I16x16)))


@operation(types.void, types.int64, types.int64)
def _narrow(builder, source, target):
    store(builder, target, _half.narrow_by_integers(builder, load(builder, source, F32x16.ir)))


@numba.njit
def _widen_all(source, target, count):
    for i in range(0, count, 16):
        _widen(source + 2 * i, target + 4 * i)


@numba.njit
def _narrow_all(source, target, count):
    for i in range(0, count, 16):
        _narrow(source + 4 * i, target + 2 * i)


EVERY = np.arange(1 << 16, dtype=np.uint16).view(np.float16)


def narrowed(x):
    found = np.empty(x.shape, np.float16)
    _narrow_all(address_of(x), address_of(found), x.size)
    return found


def same(found, expected):
    assert_array_equal(found, expected)
    assert_array_equal(np.signbit(found), np.signbit(expected))


def test_every_float16_is_widened_exactly():
    found = np.empty(EVERY.shape, np.float32)
    _widen_all(address_of(EVERY), address_of(found), EVERY.size)
    same(found, EVERY.astype(np.float32))


def test_every_float16_comes_back():
    same(narrowed(EVERY.astype(np.float32)), EVERY)


def test_rounding_between_all_neighbours():
    """The middle of two float16, and the float32 just below and just above it."""
    finite = EVERY[np.isfinite(EVERY)].astype(np.float32)
    with np.errstate(over="ignore"):
        above = np.nextafter(EVERY[np.isfinite(EVERY)], np.float16(np.inf)).astype(np.float32)
    above[np.isinf(above)] = 65536  # where the next float16 would be
    middle = finite / 2 + above / 2
    x = np.concatenate([middle, *(np.nextafter(middle, np.float32(s)) for s in (-1e9, 1e9))])
    with np.errstate(over="ignore"):
        same(narrowed(x), x.astype(np.float16))


def test_any_float32_is_rounded_once():
    x = np.random.default_rng(0).integers(0, 1 << 32, 1 << 20, np.uint32).view(np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        same(narrowed(x), x.astype(np.float16))
