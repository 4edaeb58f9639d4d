"""The soft cap of attention on the CPU."""

from __future__ import annotations

import numba
import numpy as np
import pytest
from numpy.testing import assert_array_equal

from adamas_core.cpu._array import address_of
from adamas_core.cpu.kernels._cap import cap_all, cap_one


@numba.njit
def _cap(x, n, c):
    cap_all(x, n, c)


@numba.njit
def _one(x, c):
    return cap_one(x, c)


@pytest.mark.parametrize("c", [1e-30, 0.1, 1.0, 30.0, 50.0, 3e6, 1e38])
def test_within_five_ulp_of_float64(c: float) -> None:
    y = np.concatenate([np.geomspace(1e-6, 100, 1 << 15), np.linspace(0.59, 0.61, 1 << 15)])
    with np.errstate(over="ignore"):
        x = np.concatenate([y, -y]).astype(np.float32) * np.float32(c)
    got, wide = x.copy(), x.astype(np.float64)
    _cap(address_of(got), len(got), np.float32(c))
    c64 = float(np.float32(c))
    exact = c64 * np.tanh(wide / c64)
    ulp = np.spacing(np.abs(exact).astype(np.float32)).astype(np.float64)
    assert (np.abs(got - exact) <= 5 * ulp).all()
    assert (np.abs(got) <= np.float32(c)).all()


def test_what_has_no_number() -> None:
    x = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, 3e38, -3e38, 2.0**-140] * 2, np.float32)
    _cap(address_of(x), len(x), np.float32(2))
    assert_array_equal(x[:8], np.array([0, -0.0, 2, -2, np.nan, 2, -2, 2.0**-140], np.float32))
    assert_array_equal(np.signbit(x[:2]), [False, True])


def test_one_number() -> None:
    for x in (-1e9, -3.0, 0.0, 0.2, 7.0, 1e300):
        assert _one(x, 0.0) == x
        assert abs(_one(x, 5.0) - 5 * np.tanh(x / 5)) < 1e-14
