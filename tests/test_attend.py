"""attend: against float64, within stated tolerances."""

from __future__ import annotations

from types import ModuleType

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from numpy.typing import NDArray
from oracles import assert_attention, exact_attention
from strategies import UNIT, Case, cases, softmaxes

from adamas_core import Softmax, reference


@st.composite
def choices(draw: st.DrawFn, case: Case) -> NDArray[np.int32] | None:
    """Indices (B, H, L, K) with none, some or all of them negative; None is dense."""
    B, H, L, _ = case.q.shape
    S = case.k.shape[2]
    if L <= S and draw(st.integers(0, 3)) == 0:
        return None
    K = draw(st.sampled_from([0, 1, 2, 7, 64, 130]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    indices = rng.integers(0, max(S, 1), (B, H, L, K), dtype=np.int32)
    kept = rng.integers(0, K + 1, (B, H, L, 1)) if S else 0
    indices[np.broadcast_to(np.arange(K) >= kept, indices.shape)] = -1
    return np.sort(indices, axis=-1)[..., ::-1].copy() if draw(st.booleans()) else indices


def windows(case: Case) -> st.SearchStrategy[int]:
    """From one token to more than all."""
    S = case.k.shape[2]
    return st.one_of(st.integers(1, S + 3), st.sampled_from([1, 64, 100, 2**40]))


@given(case=cases(UNIT), data=st.data())
def test_within_tolerance(every: ModuleType, case: Case, data: st.DataObject) -> None:
    indices = data.draw(choices(case))
    softmax = Softmax(data.draw(st.sampled_from([None, 0.05, 1.0 / case.q.shape[-1]])))
    out, lse = every.attend(case.q, case.k, case.v, indices, softmax, True)
    expected, expected_lse = exact_attention(*case[:3], indices, softmax)
    assert_attention(out, expected, case.q.dtype)
    assert lse.dtype == np.float32
    np.testing.assert_allclose(lse, expected_lse, rtol=2e-6, atol=4e-6)


@given(case=cases(UNIT, own_values=True), data=st.data())
def test_caps_sinks_and_values_of_another_head_dim(
    backend: ModuleType, case: Case, data: st.DataObject
) -> None:
    indices = data.draw(choices(case))
    window = None if indices is not None else data.draw(st.none() | windows(case))
    softmax = data.draw(softmaxes(case.q.shape[1]))
    out, lse = backend.attend(*case[:3], indices, softmax, True, window)
    expected, expected_lse = exact_attention(*case[:3], indices, softmax, window)
    assert_attention(out, expected, case.q.dtype)
    np.testing.assert_allclose(lse, expected_lse, rtol=2e-6, atol=4e-6)


@given(case=cases(UNIT), data=st.data())
def test_a_window_within_tolerance(every: ModuleType, case: Case, data: st.DataObject) -> None:
    assume(case.q.shape[2] <= case.k.shape[2])
    window = data.draw(windows(case))
    out, lse = every.attend(*case[:3], None, None, True, window)
    expected, expected_lse = exact_attention(*case[:3], None, window=window)
    assert_attention(out, expected, case.q.dtype)
    np.testing.assert_allclose(lse, expected_lse, rtol=2e-6, atol=4e-6)


@pytest.mark.parametrize(
    "S, L, G, window", [(700, 1, 4, 200), (700, 150, 2, 129), (300, 300, 1, 7)]
)
def test_a_window_skips_blocks(every: ModuleType, S: int, L: int, G: int, window: int) -> None:
    """Keys and values before all windows are not finite, and change nothing."""
    rng = np.random.default_rng(S + L)
    q = rng.standard_normal((1, 2 * G, L, 32)).astype(np.float32)
    k, v = rng.standard_normal((2, 1, 2, S, 32)).astype(np.float32)
    k[:, :, : S - L - window + 1] = np.nan
    v[:, :, : S - L - window + 1] = np.inf
    out, lse = every.attend(q, k, v, None, None, True, window)
    expected, expected_lse = exact_attention(q, k, v, None, window=window)
    assert_attention(out, expected, q.dtype)
    np.testing.assert_allclose(lse, expected_lse, rtol=2e-6, atol=4e-6)


@given(case=cases(["not finite"]), data=st.data())
def test_nan_and_infinities_flow(kernels: ModuleType, case: Case, data: st.DataObject) -> None:
    """A result is NaN exactly where the reference has NaN."""
    indices = data.draw(choices(case))
    window = None if indices is not None else data.draw(st.none() | windows(case))
    given_ = (*case[:3], indices, None, True, window)
    out, lse = kernels.attend(*given_)
    expected, expected_lse = reference.attend(*given_)
    np.testing.assert_array_equal(np.isnan(lse), np.isnan(expected_lse))
    np.testing.assert_array_equal(np.isnan(out), np.isnan(expected))


def test_a_hard_maximum(every: ModuleType) -> None:
    """Logits of thousands, which exp alone would overflow."""
    q = np.full((1, 1, 1, 64), 100, np.float32)
    k = np.stack([np.full(64, x, np.float32) for x in (-100, 99, 100)])[None, None]
    v = np.eye(3, 64, dtype=np.float32)[None, None]
    out, lse = every.attend(q, k, v, np.array([[[[0, 1, 2]]]], np.int32), None, True)
    np.testing.assert_array_equal(out[0, 0, 0, :3], [0, 0, 1])
    assert lse == np.float32(100 * 100 * 64 / 8)


def test_no_token(every: ModuleType) -> None:
    q = np.ones((1, 2, 1, 8), np.float32)
    k = np.ones((1, 1, 5, 8), np.float32)
    out, lse = every.attend(q, k, k, np.full((1, 2, 1, 3), -1, np.int32), None, True)
    assert not out.any()
    assert (lse == -np.inf).all()


def test_an_index_beyond_the_keys(kernels: ModuleType) -> None:
    q = np.ones((1, 1, 1, 8), np.float32)
    k = np.ones((1, 1, 5, 8), np.float32)
    with pytest.raises(IndexError, match="5"):
        kernels.attend(q, k, k, np.array([[[[1, 5]]]], np.int32))
