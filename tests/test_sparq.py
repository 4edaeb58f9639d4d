"""SparQ, against sums over its components."""

from __future__ import annotations

from hypothesis import given, settings
from lab_oracles import Case, budgets, cases, expect_scores

from adamas_core.lab.selectors import SparQ


@settings(max_examples=50)
@given(case=cases(), budget=budgets)
def test_sparq(case: Case, budget: int) -> None:
    recent = min(budget, case.S) // 4

    def score(h: int, l: int, j: int) -> float:
        if j > case.own(l) - recent:
            return float("inf")
        group = case.q[h // case.G * case.G : (h // case.G + 1) * case.G, l]
        size = [float(abs(group[:, i]).sum()) for i in range(case.D)]
        components = sorted(range(case.D), key=lambda i: (-size[i], i))[: case.D // 4]
        return float(sum(case.q[h, l, i] * case.k[h // case.G, j, i] for i in components))

    expect_scores(case, SparQ()(case.q, case.k, budget), budget, score)
