"""H2O, against sums of one query at a time."""

from __future__ import annotations

from math import exp

import numpy as np
import pytest
from hypothesis import given, settings
from lab_oracles import Array, Case, budgets, cases, filled, normal

from adamas_core.lab.selectors import H2O


@settings(max_examples=50)
@given(case=cases(), budget=budgets)
def test_h2o(case: Case, budget: int) -> None:
    fitted = H2O().fit(case.q0, case.k0)
    got = fitted(case.q, case.k, budget)
    K = min(budget, case.S)
    scale = case.D**-0.5

    def attention(h: int, query: Array, tokens: list[int]) -> dict[int, float]:
        z = {j: float(query @ case.k[h // case.G, j]) * scale for j in tokens}
        top = max(z.values())
        total = sum(exp(value - top) for value in z.values())
        return {j: exp(value - top) / total for j, value in z.items()}

    for h in range(case.H):
        sums = dict.fromkeys(range(case.S), 0.0)
        S0 = case.S - case.L
        for t in range(S0):
            for j, share in attention(h, case.q0[h, t], list(range(t + 1))).items():
                sums[j] += share
        assert fitted.accumulated is not None
        np.testing.assert_allclose(fitted.accumulated[h], [sums[j] for j in range(S0)], rtol=1e-4)
        # From here with the selector's own sums: equal ones must not differ in their last digit.
        sums |= {j: float(value) for j, value in enumerate(fitted.accumulated[h])}
        recent = K - K // 2
        kept = list(range(max(S0 - recent, 0), S0))
        older = sorted(range(max(S0 - recent, 0)), key=lambda j: (sums[j], j), reverse=True)
        kept = sorted(kept + older[: K // 2])
        for l in range(case.L):
            own = case.own(l)
            if len(kept) == K:
                behind = [j for j in kept if j <= own - recent]
                margin = sorted(sums[j] for j in behind)
                if len(margin) > 1 and 0 < margin[1] - margin[0] < 1e-5:
                    return  # float32 and float64 may evict different ones
                kept.remove(min(behind, key=lambda j: (sums[j], j)))
            kept.append(own)
            assert got[h, l].tolist() == filled(kept, K)
            for j, share in attention(h, case.q[h, l], kept).items():
                sums[j] += share


def test_h2o_goes_on_from_its_prefix() -> None:
    case = normal(2, 2, 1, 30, 6, 16)
    fitted = H2O().fit(case.q0, case.k0)
    with pytest.raises(ValueError, match=r"24 tokens, but q is float32 \(2, 6, 16\).* of 29"):
        fitted(case.q, case.k[:, 1:], 8)
    # Sums are not passed from block to block, so two blocks differ from one.
    np.testing.assert_array_equal(
        fitted(case.q[:, :3], case.k[:, :27], 8), fitted(case.q, case.k, 8)[:, :3]
    )
