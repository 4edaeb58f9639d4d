"""Adaptive budgets, against one sorted list of needs."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lab_oracles import Case, cases, normal

from adamas_core.lab.selectors import AdaptiveBudgets, SimulatedCodes


@settings(max_examples=50)
@given(case=cases(integers=False, longest=40), budget=st.integers(1, 20))
def test_adaptive_budgets(case: Case, budget: int) -> None:
    selector = AdaptiveBudgets(least=0.5, most=2.0).fit(case.q0, case.k0)
    got = selector(case.q, case.k, budget)
    K = min(budget, case.S)
    for l in range(case.L):
        n = case.own(l) + 1
        need: list[tuple[float, int]] = []
        ranked = []
        for h in range(case.H):
            g = h // case.G
            heads = slice(g * case.G, (g + 1) * case.G)
            own = np.array([case.own(l)])
            z = selector.inner.estimates(g, case.q[heads, l : l + 1], case.k[g], own)
            logits = z[h - heads.start, 0, :n].astype(np.float64)
            p = np.exp(logits - logits.max())
            p /= p.sum()
            ranked.append(sorted(range(n), key=lambda j: (logits[j], j), reverse=True))
            # First what every head has, then by weight, up to twice the budget.
            for place, j in enumerate(ranked[h][: 2 * K]):
                need.append((2.0 if place < max(K // 2, 1) else float(p[j]), h))
        need.sort(key=lambda item: (-item[0], item[1]))
        margin = [w for w, _ in need[case.H * K - 1 : case.H * K + 1]]
        if len(margin) == 2 and margin[0] - margin[1] < 1e-6:
            continue  # a tie, or one in float32
        for h in range(case.H):
            share = sum(1 for _, head in need[: case.H * K] if head == h)
            assert [j for j in got[h, l] if j >= 0] == sorted(ranked[h][:share]), (h, l)


def test_adaptive_budgets_have_an_equal_total() -> None:
    case = normal(9, 6, 2, 300, 5, 16)
    got = AdaptiveBudgets().fit(case.q0, 4 * case.k0)(case.q, 4 * case.k, 16)
    taken = (got >= 0).sum(axis=-1)
    np.testing.assert_array_equal(taken.sum(axis=0), 6 * 16)
    assert taken.min() >= 4 and taken.max() <= 64 and len(set(taken.ravel())) > 1


def test_wrong_options_of_adaptive_budgets() -> None:
    with pytest.raises(ValueError, match=r"least=0 and most=4\.0"):
        AdaptiveBudgets(least=0)
    with pytest.raises(ValueError, match=r"most=inf; expected .* finite"):
        AdaptiveBudgets(most=np.inf)
    with pytest.raises(ValueError, match="expected metric='weighted' without group"):
        AdaptiveBudgets(inner=SimulatedCodes(refine=2))
