"""The last tokens."""

from __future__ import annotations

from hypothesis import given, settings
from lab_oracles import Case, budgets, cases, expect

from adamas_core.lab.selectors import SlidingWindow


@settings(max_examples=50)
@given(case=cases(), budget=budgets)
def test_sliding_window(case: Case, budget: int) -> None:
    def last(h: int, l: int, K: int) -> list[int]:
        return list(range(case.own(l) + 1))[-K:]

    expect(case, SlidingWindow()(case.q, case.k, budget), budget, last)
