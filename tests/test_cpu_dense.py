"""Dense attention on the CPU: values that are not finite reach only the queries that see them."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from adamas_core import Softmax, cpu, reference


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("window", [None, 150, 9])
@pytest.mark.parametrize("S, L, G", [(2, 2, 1), (5, 5, 4), (300, 20, 2), (140, 140, 1)])
def test_a_token_changes_only_the_queries_that_see_it(dtype, bad, S, L, G, window):
    rng = np.random.default_rng(S)
    q = rng.standard_normal((1, G, L, 24)).astype(dtype)
    k, v = (rng.standard_normal((1, 1, S, 24)).astype(dtype) for _ in range(2))
    first = S - L // 2  # the first half of the queries does not see it
    v[:, :, first, 3:7] = bad
    out, lse = cpu.attend(q, k, v, None, None, True, window)
    expected, expected_lse = reference.attend(q, k, v, None, None, True, window)
    assert_array_equal(np.isfinite(out), np.isfinite(expected))
    assert np.isfinite(out[:, :, : L - L // 2]).all()
    reached = slice(L - L // 2, None if window is None else L - L // 2 + window)
    assert not np.isfinite(out[:, :, reached, 3:7]).any()
    tolerance = {np.float32: 1e-5, np.float16: 2e-3}.get(dtype, 2e-2)
    finite = np.isfinite(expected)
    assert_allclose(
        out[finite].astype(np.float32),
        expected[finite].astype(np.float32),
        rtol=tolerance,
        atol=tolerance,
    )
    assert_allclose(lse, expected_lse, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("window", [None, 1])
@pytest.mark.parametrize(("S", "L"), [(0, 1), (0, 3), (1, 3), (2, 70)])
def test_a_query_without_tokens_has_the_lse_of_its_sink(S, L, window):
    softmax = Softmax(sink_logits=[-1, 2, -np.inf, 0])
    q, k, v = (np.ones((2, H, n, 8), np.float32) for H, n in ((4, L), (2, S), (2, S)))
    out, lse = cpu.attend(q, k, v, None, softmax, True, window)
    expected, expected_lse = reference.attend(q, k, v, None, softmax, True, window)
    assert_allclose(out, expected, rtol=1e-6)
    assert_allclose(lse, expected_lse, rtol=1e-6)
    assert_array_equal(lse[0, :, 0], softmax.sink_logits)
