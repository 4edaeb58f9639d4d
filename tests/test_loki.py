"""Loki, against a singular value decomposition."""

from __future__ import annotations

import numpy as np
from lab_oracles import best, normal

from adamas_core.lab.selectors import Loki


def test_loki() -> None:
    case = normal(3, 6, 2, 200, 20, 16)
    got = Loki().fit(case.q0, case.k0)(case.q, case.k, 30)
    for h, l in np.ndindex(case.H, case.L):
        keys = case.k0[h // case.G].astype(np.float64)
        directions = np.linalg.svd(keys - keys.mean(axis=0))[2][:4]  # of the largest variance
        visible = case.k[h // case.G, : case.own(l) + 1]
        scores = visible @ directions.T @ (directions @ case.q[h, l])
        assert got[h, l].tolist() == best(scores.tolist(), 30)
