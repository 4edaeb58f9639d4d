"""Thresholds and steps of simulated codes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from lab_oracles import Array

from adamas_core.lab.selectors import SimulatedCodes


def test_thresholds_and_steps() -> None:
    rng = np.random.default_rng(6)
    k = 3 * rng.standard_normal((1, 1000, 64), dtype=np.float32)
    q = rng.standard_normal((1, 1000, 64), dtype=np.float32)
    size = float(np.sqrt((k.astype(np.float64) ** 2).mean()))

    def edges(**options: Any) -> Array:
        fitted = SimulatedCodes(**options).fit(q, k).fitted
        assert fitted is not None
        return fitted.coder.edges[0]

    np.testing.assert_allclose(edges(), [-0.996 * size, 0, 0.996 * size], rtol=1e-5)
    np.testing.assert_allclose(edges(bits=1), [0])
    np.testing.assert_allclose(
        edges(bits=3), np.array([-3, -2, -1, 0, 1, 2, 3]) * 0.586 * size, rtol=1e-5, atol=1e-6
    )
    np.testing.assert_allclose(edges(thresholds="token"), [-0.996, 0, 0.996], rtol=1e-6)
    np.testing.assert_allclose(edges(thresholds="published"), [-10, 0, 10])
    np.testing.assert_allclose(
        edges(thresholds="quartiles"), np.array([-0.6745, 0, 0.6745]) * size, atol=0.03
    )
    # Of normal coordinates the best step of these quantizers is the distance of their edges.
    for bits, step in ((1, 1.5957), (2, 0.996), (3, 0.586)):
        fitted = SimulatedCodes(bits=bits).fit(q, k).fitted
        assert fitted is not None
        assert float(fitted.step[0]) == pytest.approx(step * size, rel=0.01)
