"""The power of two that makes weights of logits, with and without AVX-512."""

from __future__ import annotations

import pytest
from processes import printed

CODE = """
import numba
import numpy as np
from adamas_core.cpu.kernels._simd import load_float32, store_float32
from adamas_core.cpu.kernels._weights import HIGHEST, power_of_two

@numba.njit
def powers(x, y, n):
    for i in range(0, n, 16):
        store_float32(y + 4 * i, power_of_two(load_float32(x + 4 * i)))

def power(x):
    y = np.empty_like(x)
    powers(x.ctypes.data, y.ctypes.data, len(x))
    return y

x = np.random.default_rng(0).uniform(-119, 11.5, 1 << 16).astype(np.float32)
x[:300] = np.arange(-150, 150) / 16
x[:1] = 0
exact = np.exp2(x.astype(np.float64))
print((np.abs(power(x) / exact - 1) < 2.0**-18).all())

large = power(np.array([12, 1e30, np.inf, np.nan] * 4, np.float32))
print((np.abs(large / np.exp(HIGHEST) - 1) < 2.0**-18).all())

small = power(np.array([-130, -1000, -1e30, -np.inf] * 4, np.float32))
print(((small >= 0) & (small < 2.0**-120)).all() and (small.reshape(4, 4)[:, 1:] == 0).all())
"""


@pytest.mark.parametrize("processor", [None, "x86-64-v3"])
def test_powers(processor: str | None) -> None:
    """x86-64-v3 has no AVX-512; None is this processor, with all that it has."""
    names = {"NUMBA_CPU_NAME": processor, "NUMBA_CPU_FEATURES": ""} if processor else {}
    assert printed(CODE, **names).split() == ["True"] * 3
