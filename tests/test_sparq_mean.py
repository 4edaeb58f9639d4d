"""SparQ with its mean value, against sums over tokens and components."""

from __future__ import annotations

import math

import numpy as np
from hypothesis import given, settings
from lab_oracles import Case, budgets, cases

from adamas_core.lab.selectors import SparQ, SparQMean


@settings(max_examples=50)
@given(case=cases(integers=False), budget=budgets)
def test_sparq_mean(case: Case, budget: int) -> None:
    got = SparQMean().attend(case.q, case.k, case.v, budget)
    indices = SparQ()(case.q, case.k, budget)
    for h, l in np.ndindex(case.H, case.L):
        g, n = h // case.G, case.own(l) + 1
        group = case.q[g * case.G : (g + 1) * case.G, l]
        size = [float(abs(group[:, i]).sum()) for i in range(case.D)]
        components = sorted(range(case.D), key=lambda i: (-size[i], i))[: case.D // 4]
        q = case.q[h, l].astype(np.float64)
        share = sum(abs(q[i]) for i in components) / abs(q).sum()
        k, v = case.k[g, :n].astype(np.float64), case.v[g, :n].astype(np.float64)
        p = np.exp(k[:, components] @ q[components] / math.sqrt(case.D * share))
        chosen = indices[h, l][indices[h, l] >= 0]
        alpha = p[chosen].sum() / p.sum()
        w = np.exp(k[chosen] @ q / math.sqrt(case.D))
        expected = alpha * (w @ v[chosen] / w.sum()) + (1 - alpha) * v.mean(axis=0)
        np.testing.assert_allclose(got[h, l], expected, rtol=1e-3, atol=1e-4)


def test_a_query_of_zeros() -> None:
    """All logits are 0: the chosen tokens have their share of the tokens."""
    k = np.random.default_rng(0).standard_normal((1, 20, 8), dtype=np.float32)
    got = SparQMean().attend(np.zeros((1, 1, 8), np.float32), k, k, 5)
    chosen = SparQ()(np.zeros((1, 1, 8), np.float32), k, 5)[0, 0]
    expected = 0.25 * k[0, chosen].mean(axis=0) + 0.75 * k[0].mean(axis=0)
    np.testing.assert_allclose(got[0, 0], expected, atol=1e-6)
