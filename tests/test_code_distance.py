"""Distances between codes, against sums over coordinates."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from lab_oracles import Array, Case, budgets, cases, expect_scores, transform

from adamas_core.lab.selectors import SimulatedCodes

DISTANCES: dict[str, Callable[[int, int], int]] = {
    "l1": lambda c, e: abs(c - e),
    "l2": lambda c, e: (c - e) ** 2,
    "xor": lambda c, e: bin(c ^ e).count("1"),
}


def level_codes(x: Array, edges: Array) -> list[int]:
    return [sum(bool(edge < value) for edge in edges) for value in x]


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("bits", [1, 2, 3])
@pytest.mark.parametrize("metric", DISTANCES)
@settings(max_examples=15)
@given(case=cases(longest=40), budget=budgets)
def test_distances(metric: str, bits: int, own: bool, case: Case, budget: int) -> None:
    selector = SimulatedCodes(metric=metric, bits=bits, thresholds="quartiles", own_thresholds=own)
    selector = selector.fit(case.q0, case.k0)
    x, y, x0, y0 = (transform(a) for a in (case.q, case.k, case.q0, case.k0))
    share = np.arange(1, 2**bits) / 2**bits
    c = []
    for keys, sample in zip(y, y0, strict=True):
        edges = np.quantile(sample.astype(np.float32), share).astype(np.float32)
        c.append([level_codes(key, edges) for key in keys])
    e = []
    for h in range(case.H):
        sample = x0[h] if own else y0[h // case.G]
        edges = np.quantile(sample.astype(np.float32), share).astype(np.float32)
        e.append([level_codes(query, edges) for query in x[h]])

    def score(h: int, l: int, j: int) -> float:
        pairs = zip(c[h // case.G][j], e[h][l], strict=True)
        return -sum(DISTANCES[metric](a, b) for a, b in pairs)

    expect_scores(case, selector._by_estimates(case.q, case.k, min(budget, case.S)), budget, score)


def test_the_kernel_of_the_paper_confuses_the_middle() -> None:
    # Codes 1 and 2 are neighbours, but differ in both bits.
    k = np.array([[[-5, 0, 0, 0], [5, 0, 0, 0], [-15, 0, 0, 0]]], np.float32)
    q = np.array([[[5, 0, 0, 0]]], np.float32)
    options = {"transform": False, "thresholds": "published"}
    xor = SimulatedCodes(metric="xor", **options).fit(q, k)  # type: ignore[arg-type]
    l1 = SimulatedCodes(metric="l1", **options).fit(q, k)  # type: ignore[arg-type]
    own = np.array([2])
    np.testing.assert_array_equal(xor.estimates(0, q, k[0], own)[0, 0], [-2, 0, -1])
    np.testing.assert_array_equal(l1.estimates(0, q, k[0], own)[0, 0], [-1, 0, -2])
