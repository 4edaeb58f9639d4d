"""Sign hashing, against signs counted one by one."""

from __future__ import annotations

from hypothesis import given, settings
from lab_oracles import Case, budgets, cases, expect_scores, transform

from adamas_core.lab.selectors import SignHash


@settings(max_examples=50)
@given(case=cases(), budget=budgets)
def test_sign_hash(case: Case, budget: int) -> None:
    x, y = transform(case.q), transform(case.k)

    def score(h: int, l: int, j: int) -> float:
        return -sum(
            int((a > 0) != (b > 0)) for a, b in zip(x[h, l], y[h // case.G, j], strict=True)
        )

    expect_scores(case, SignHash()(case.q, case.k, budget), budget, score)
