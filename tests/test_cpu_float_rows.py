"""Rows of 16-bit floats on the CPU: widened exactly, and rounded once."""

from __future__ import annotations

import ml_dtypes
import numba
import numpy as np
import pytest
from numpy.testing import assert_array_equal

from adamas_core.cpu._array import address_of, dtype_code
from adamas_core.cpu.kernels import _float_rows, _simd


@numba.njit
def _narrow(x, half, bfloat):
    value = _simd.load_float32(x)
    _float_rows.store_first_float16(half, value, 16)
    _float_rows.store_first_bfloat16(bfloat, value, 15)


def test_results_are_rounded_to_nearest_even():
    x = np.array([1 + 2**-8, 1 + 3 * 2**-8, 1 + 2**-11, 1 + 3 * 2**-11, 3.4e38, -0.0], np.float32)
    x = np.concatenate([x, np.float32([np.inf, -np.inf, np.nan, 1e-7, 65519.0, 6e-8])])
    x = np.concatenate([x, np.float32([1e-40, -1.5, 70000.0, 9.0])])
    half, bfloat = np.empty(16, np.float16), np.full(16, 7, ml_dtypes.bfloat16)
    _narrow(address_of(x), address_of(half), address_of(bfloat))
    with np.errstate(over="ignore"):
        assert_array_equal(half, x.astype(np.float16))
    expected = x.astype(ml_dtypes.bfloat16)
    assert_array_equal(bfloat[:15].astype(np.float32), expected[:15].astype(np.float32))
    assert bfloat[15] == 7  # the lane after the count was not written


@numba.njit
def _widen(source, dtype, D, target):
    _float_rows.widen_row(source, dtype, D, target)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("D", [1, 15, 16, 17, 40])
def test_a_widened_row_ends_with_zeros(dtype, D):
    x = np.random.default_rng(D).standard_normal(64).astype(dtype)
    wide = np.full(64, 7, np.float32)
    _widen(address_of(x), dtype_code(x), D, address_of(wide))
    end = -(-D // 16) * 16
    assert_array_equal(wide[:D], x[:D].astype(np.float32))
    assert not wide[D:end].any()
    assert (wide[end:] == 7).all()
