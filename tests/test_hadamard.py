"""hadamard: against scipy's matrix, and every backend to the bit."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np
import pytest
import scipy.linalg
from hypothesis import given
from numpy.typing import NDArray
from oracles import assert_same_bits
from strategies import FINITE, vectors

from adamas_core import hadamard, reference


@given(x=vectors())
def test_bits(kernels: ModuleType, x: NDArray[Any]) -> None:
    assert_same_bits(kernels.hadamard(x), reference.hadamard(x))


@given(x=vectors(FINITE))
def test_is_the_sylvester_matrix(backend: ModuleType, x: NDArray[Any]) -> None:
    D = x.shape[-1]
    Dt = 1 << (D - 1).bit_length()
    wide = np.zeros((*x.shape[:-1], Dt))
    wide[..., :D] = x
    exact = wide @ scipy.linalg.hadamard(Dt) / np.sqrt(Dt)
    # log2(Dt) + 1 roundings, each of half a unit in the last place of a partial sum
    scale = np.abs(wide).sum(axis=-1, keepdims=True) / np.sqrt(Dt)
    bound = (np.log2(Dt) + 2) * 2.0**-24 * scale + 2.0**-149
    assert (np.abs(backend.hadamard(x) - exact) <= bound).all()


def test_golden(backend: ModuleType) -> None:
    x = np.array([[1, 2, 3, 4], [0, 0, 0, -2]], np.float32)
    expected = np.array([[5, -1, -2, 0], [-1, 1, 1, -1]], np.float32)
    assert_same_bits(backend.hadamard(x), expected)


def test_inner_products_stay() -> None:
    rng = np.random.default_rng(0)
    q, k = rng.standard_normal((2, 50, 80)).astype(np.float32)
    np.testing.assert_allclose(hadamard(q) @ hadamard(k).T, q @ k.T, atol=2e-5)


@pytest.mark.parametrize("shape", [(0, 4), (3, 0, 16), (1, 1)])
def test_empty_and_one(backend: ModuleType, shape: tuple[int, ...]) -> None:
    x = np.ones(shape, np.float32)
    assert_same_bits(backend.hadamard(x), x)
