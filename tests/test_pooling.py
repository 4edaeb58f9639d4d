"""One choice for a group, against sums over its heads."""

from __future__ import annotations

from math import exp

import numpy as np
import pytest
from lab_oracles import best, normal

from adamas_core.lab.selectors import SimulatedCodes


@pytest.mark.parametrize("group", ["softmax", "nearest"])
def test_pooling(group: str) -> None:
    case = normal(8, 6, 2, 80, 7, 16)
    case.q *= 8  # logits down to where weights end
    selector = SimulatedCodes(group=group).fit(case.q0, case.k0)
    got = selector(case.q, case.k, 12)
    for g in range(2):
        heads = slice(3 * g, 3 * g + 3)
        own = np.arange(73, 80)
        logits = selector.estimates(g, case.q[heads], case.k[g], own)
        for l in range(7):
            z = logits[:, l, : case.own(l) + 1].astype(np.float64)
            scores = []
            for j in range(z.shape[1]):
                if group == "nearest":
                    scores.append(max(z[:, j]))
                else:
                    scores.append(sum(1 / sum(exp(v - row[j]) for v in row) for row in z))
            expected = best(scores, 12)
            for h in range(heads.start, heads.stop):
                assert got[h, l].tolist() == expected
