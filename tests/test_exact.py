"""The exact top-k, against sums over coordinates."""

from __future__ import annotations

from hypothesis import given, settings
from lab_oracles import Case, budgets, cases, expect_scores

from adamas_core.lab.selectors import Exact


@settings(max_examples=50)
@given(case=cases(), budget=budgets)
def test_exact(case: Case, budget: int) -> None:
    def score(h: int, l: int, j: int) -> float:
        return float(sum(a * b for a, b in zip(case.q[h, l], case.k[h // case.G, j], strict=True)))

    expect_scores(case, Exact()(case.q, case.k, budget), budget, score)
