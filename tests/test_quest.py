"""Quest, against bounds of one page at a time."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from lab_oracles import Case, budgets, cases, expect_scores, normal

from adamas_core.lab.selectors import Quest


@settings(max_examples=50)
@given(case=cases(), budget=budgets, page=st.sampled_from([1, 3, 16]))
def test_quest(case: Case, budget: int, page: int) -> None:
    def score(h: int, l: int, j: int) -> float:
        start = j // page * page
        keys = case.k[h // case.G, start : min(start + page, case.own(l) + 1)]
        bounds = [
            max(q * low, q * high)
            for q, low, high in zip(case.q[h, l], keys.min(axis=0), keys.max(axis=0), strict=True)
        ]
        return float(sum(bounds))

    expect_scores(case, Quest(page=page)(case.q, case.k, budget), budget, score)


def test_quest_bounds_what_is_in_a_page() -> None:
    case = normal(1, 4, 2, 50, 8, 16)
    first = Quest()(case.q, case.k, 16)
    for h, l in np.ndindex(4, 8):
        pages = set(first[h, l] // 16)
        assert len(pages) <= 2  # one page, or the visible part of the last one and another
