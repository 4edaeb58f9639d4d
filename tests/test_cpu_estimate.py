"""The search by estimates on the CPU: guessed bounds, and the test that sorts tokens out."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

from adamas_core import Selection, cpu, encode, reference
from adamas_core.cpu.kernels._jit import outlined
from adamas_core.cpu.kernels._scratch import CHUNK, SAMPLE_TILES
from adamas_core.cpu.kernels._simd import load_float32, store_float32
from adamas_core.cpu.kernels.estimate import limits_of
from adamas_core.reference.layout import TILE

D = 16
# n s: n is an integer below 2^18, and s has five bits.
PRODUCTS = st.builds(lambda n, s: n * s / 16.0, st.integers(-(2**18), 2**18), st.integers(16, 31))
FEWEST = 4 * 16 * TILE  # tokens of a part that is sampled


def _equal_to_reference(q: Any, k: Any, budgets: list[int], **options: Any) -> None:
    codes = encode(k).record
    for budget in budgets:
        selection = Selection(**options)
        expected = reference.select_topk(q, codes, budget, selection)
        assert_array_equal(cpu.select_topk(q, codes, budget, selection), expected)


def _inputs(S: int, heads: int = 4, seed: int = 0) -> tuple[Any, Any]:
    rng = np.random.default_rng(seed)
    k = rng.standard_normal((1, 1, S, D), dtype=np.float32)
    return rng.standard_normal((1, heads, 1, D), dtype=np.float32), k


@pytest.mark.parametrize(
    "S", [FEWEST - 1, FEWEST, FEWEST + TILE + 1, CHUNK - 1, CHUNK + 1, 64 * TILE * SAMPLE_TILES + 5]
)
def test_sizes_where_the_search_changes(S: int) -> None:
    """Where a sample begins to pay, where it is largest, and where chunks end."""
    q, k = _inputs(S, heads=5)
    _equal_to_reference(q, k, [1, 64, 700])


@pytest.mark.parametrize("tile", [2, 3])
def test_a_guess_that_is_wrong(tile: int) -> None:
    """The nearest tokens fill a tile of the sample, or the one beside it.

    In the first case the guess is their own rank, and fewer than 64 tokens come up to it.
    """
    q, k = _inputs(FEWEST, heads=1)
    k[0, 0, TILE * tile : TILE * tile + 40] = 3 * q[0, 0]
    _equal_to_reference(q, k, [16, 48, 64, 200])
    _equal_to_reference(q, k, [48], sinks=3, recent=5)


@pytest.mark.parametrize("heads", [1, 4])
def test_equal_estimates(heads: int) -> None:
    q, k = _inputs(FEWEST + 70, heads)
    k[...] = k[:, :, :1]
    _equal_to_reference(q, k, [1, 100])


@pytest.mark.parametrize("offset", [0.0, 30.0, 1000.0, 30000.0])
@pytest.mark.parametrize("size", [3e-44, 1e-41, 1e-33, 1e-28, 1.0, 1e30, 3e38])
def test_tokens_are_not_sorted_out_by_rounding(offset: float, size: float) -> None:
    """Products with means hide the differences of tokens, or units are near the ends of float32."""
    q, k = _inputs(FEWEST, heads=2)
    k += np.float32(offset)
    with np.errstate(over="ignore"):
        _equal_to_reference((q * np.float32(size)).astype(np.float32), k, [5, 128])


@outlined
def _limits(least, mean, unit, out):
    terms = load_float32(least.ctypes.data), load_float32(mean.ctypes.data)
    store_float32(out.ctypes.data, limits_of(*terms, load_float32(unit.ctypes.data)))


@given(data=st.data())
def test_an_estimate_is_not_below_its_own_limit(data: st.DataObject) -> None:
    """Where the bound is the estimate itself, by rounding up or down, the token stays."""
    numbers = st.floats(-(2.0**60), 2.0**60, width=32)
    p, mean = (
        np.array(data.draw(st.lists(x, min_size=16, max_size=16)), np.float32)
        for x in (PRODUCTS, numbers)
    )
    exponents = st.integers(-100, 60)
    unit = np.array(data.draw(st.lists(exponents, min_size=16, max_size=16)), np.float32)
    unit = np.float32(data.draw(st.floats(1, 2, width=32))) * np.exp2(unit)
    limit = np.empty(16, np.float32)
    _limits(p * unit + mean, mean, unit, limit)
    assert not (p < limit).any()


@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
def test_queries_that_are_no_numbers(number: float) -> None:
    q, k = _inputs(FEWEST, heads=2)
    q[0, 1, 0, 3] = number
    _equal_to_reference(q, k, [5, 128])
