"""Full attention as a selector takes all visible tokens."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from lab_oracles import Case, budgets, cases, filled

from adamas_core.lab.selectors import Full


@settings(max_examples=50)
@given(case=cases(), budget=budgets)
def test_full(case: Case, budget: int) -> None:
    got = Full()(case.q, case.k, budget)
    for l in range(case.L):
        assert got[0, l].tolist() == filled(list(range(case.own(l) + 1)), case.S)
    np.testing.assert_array_equal(got, np.broadcast_to(got[:1], got.shape))
