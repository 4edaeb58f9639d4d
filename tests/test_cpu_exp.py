"""The exponential function of attention on the CPU."""

from __future__ import annotations

import numba
import numpy as np
from numpy.testing import assert_array_equal

from adamas_core.cpu._array import address_of
from adamas_core.cpu.kernels import _simd
from adamas_core.cpu.kernels._exp import exp


@numba.njit
def _exp(x, y, n):
    for i in range(0, n, 16):
        _simd.store_float32(y + 4 * i, exp(_simd.load_float32(x + 4 * i)))


def test_exp_is_within_an_ulp_of_float64():
    x = -np.geomspace(1e-30, 120, 1 << 16).astype(np.float32)
    x[:4] = 0, -0.0, -np.inf, np.nan
    y = np.empty_like(x)
    _exp(address_of(x), address_of(y), len(x))
    exact = np.exp(x.astype(np.float64))
    ulp = np.spacing(exact.astype(np.float32)).astype(np.float64)
    assert np.isnan(y[3])
    assert_array_equal(y[:3], [1, 1, 0])
    assert (np.abs(y[4:] - exact[4:]) <= 1.01 * ulp[4:]).all()
