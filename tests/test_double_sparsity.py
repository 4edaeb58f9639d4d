"""Double Sparsity: its channels, its labels and its choice."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from lab_oracles import Case, budgets, cases

from adamas_core.lab.selectors import DoubleSparsity


@settings(max_examples=50)
@given(case=cases(dims=(16, 64)), budget=budgets, share=st.sampled_from([4, 16]))
def test_double_sparsity(case: Case, budget: int, share: int) -> None:
    selector = DoubleSparsity(share=share).fit(case.q0, case.k0)
    channels = []
    for g in range(len(case.k)):
        heads = range(g * case.G, (g + 1) * case.G)
        weight = [
            sum(float(abs(case.q0[h, :, i] * case.k0[g, :, i]).sum()) for h in heads)
            for i in range(case.D)
        ]
        channels.append(sorted(range(case.D), key=lambda i: (-weight[i], i))[: case.D // share])
    assert selector.channels is not None
    np.testing.assert_array_equal(selector.channels, channels)

    # Labels are checked where their rounding is; scores then use them as they are.
    labels = [selector._labels(case.k[g][:, channels[g]]) for g in range(len(case.k))]
    for g, label in enumerate(labels):
        kept = case.k[g][:, channels[g]]
        span = kept.max(axis=1, keepdims=True) - kept.min(axis=1, keepdims=True)
        assert (abs(label - kept) <= span / 30 + 1e-5).all()
        for row, low, width in zip(label, kept.min(axis=1), span[:, 0], strict=True):
            steps = (row - low) / (width / 15 if width else 1)
            np.testing.assert_allclose(steps, np.rint(steps), atol=1e-3)

    got = selector(case.q, case.k, budget)
    for h, l in np.ndindex(case.H, case.L):
        g = h // case.G
        scores = labels[g][: case.own(l) + 1].astype(np.float64) @ case.q[h, l, channels[g]]
        chosen = got[h, l][got[h, l] >= 0]
        left = np.delete(scores, chosen)
        assert len(chosen) == min(budget, case.own(l) + 1)
        assert not left.size or scores[chosen].min() >= left.max() - 1e-4
