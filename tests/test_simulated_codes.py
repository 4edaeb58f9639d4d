"""Simulated codes, against the library and against one key at a time."""

from __future__ import annotations

from dataclasses import replace
from math import floor, log
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lab_oracles import Array, Case, budgets, cases, expect, normal, transform

from adamas_core.lab.selectors import Adamas, SimulatedCodes
from adamas_core.selection import Selection


@given(case=cases(integers=False, dims=(4, 16, 20)), budget=budgets, data=st.data())
def test_the_form_of_the_library_chooses_as_the_library(
    case: Case, budget: int, data: st.DataObject
) -> None:
    K = min(budget, case.S)
    metric, name = data.draw(st.sampled_from([("weighted", "weighted"), ("l1", "manhattan")]))
    query_bits = data.draw(st.integers(2, 8))
    rule = data.draw(st.sampled_from(["rms", "quartiles", "published"]))
    selection = Selection(metric=name, query_bits=query_bits)
    library = Adamas(selection=selection, thresholds=rule).fit(case.q0, case.k0)
    assert library.fitted is not None
    selector = SimulatedCodes(metric=metric, query_bits=query_bits, thresholds=rule)
    selector = selector.fit(case.q0, case.k0)
    assert selector.fitted is not None
    # The library's thresholds differ from those of the simulation in their last bits.
    coder = replace(selector.fitted.coder, edges=library.fitted)
    query_edges = np.repeat(library.fitted, case.G, axis=0)
    fitted = replace(selector.fitted, coder=coder, query_edges=query_edges)
    found = replace(selector, fitted=fitted)(case.q, case.k, K)
    np.testing.assert_array_equal(found, library(case.q, case.k, budget))


def test_centered_codes_estimate_as_the_library() -> None:
    """The simulation rounds sums in another way, so that some tokens differ, but few."""
    case = normal(11, 4, 2, 700, 100, 64)
    library = Adamas().fit(case.q0, case.k0)
    simulated = SimulatedCodes(thresholds="token", scale=True, block=64, recode=True)
    simulated = simulated.fit(case.q0, case.k0)
    a, b = (selector(case.q, case.k, 64) for selector in (library, simulated))
    same = [len(np.intersect1d(a[h, l], b[h, l])) for h, l in np.ndindex(a.shape[:2])]
    assert np.mean(same) > 0.97 * 64


def approximation(
    x: Array, edges: Array, step: float, per_token: bool, scale: bool
) -> tuple[Array, Array]:
    """A key x (D,) as its codes stand for it, and the centered codes."""
    size = float(np.sqrt((x**2).mean())) if per_token else 1.0
    n = len(edges) + 1
    u = np.array([sum(edge * size < value for edge in edges) for value in x]) - (n - 1) / 2
    if scale:
        along = float(x @ u)
        ratio = float(x @ x) / along if along > 0 else 0.0
        octave = 2.0 ** floor(log(ratio, 2)) if ratio else 2.0**-16
        step = octave * (1 + round(8 * (ratio / octave - 1)) / 8) if ratio else octave
    return u * step, u


@pytest.mark.parametrize("transformed", [True, False])
@pytest.mark.parametrize(
    ("rule", "bits", "scale", "block", "recode", "query_bits"),
    [
        ("rms", 1, False, 0, False, None),
        ("rms", 3, False, 0, False, 8),
        ("token", 2, False, 0, False, 4),
        ("token", 2, True, 0, False, None),
        ("token", 3, True, 8, False, 4),
        ("token", 2, True, 8, True, None),
        ("quartiles", 3, False, 8, True, 3),
        ("published", 2, True, 4, True, 8),
    ],
)
def test_estimated_logits(
    transformed: bool,
    rule: str,
    bits: int,
    scale: bool,
    block: int,
    recode: bool,
    query_bits: int | None,
) -> None:
    case = normal(5, 4, 2, 60, 11, 16)
    selector = SimulatedCodes(
        bits=bits,
        thresholds=rule,
        scale=scale,
        block=block,
        recode=recode,
        query_bits=query_bits,
        transform=transformed,
    ).fit(case.q0, case.k0)
    assert selector.fitted is not None
    turn = transform if transformed else (lambda a: a.astype(np.float64))
    x, y = turn(case.q), turn(case.k)
    wrong = []
    for g in range(2):
        edges = selector.fitted.coder.edges[g].astype(np.float64)
        step = float(selector.fitted.step[g])
        heads = slice(g * case.G, (g + 1) * case.G)
        own = np.arange(case.S - case.L, case.S)
        got = selector.estimates(g, case.q[heads], case.k[g], own)
        for i, l in np.ndindex(case.G, case.L):
            n = case.own(l) + 1
            assert (got[i, l, n:] == -np.inf).all()
            expected = np.zeros(n)
            query = x[g * case.G + i, l]
            weights = query
            if query_bits is not None:
                unit = abs(query).max() / (2 ** (query_bits - 1) - 1)
                weights = np.rint(query / unit) * unit
            for j in range(n):
                mean = np.zeros(case.D)
                if block:
                    full = (j // block + 1) * block <= n
                    first = j // block * block - (0 if recode and full else block)
                    if first >= 0:
                        mean = y[g, first : first + block].mean(axis=0).astype(np.float16)
                coded, _ = approximation(y[g, j] - mean, edges, step, rule == "token", scale)
                expected[j] = (weights @ coded + query @ mean) / case.D**0.5
            wrong.append(~np.isclose(got[i, l, :n], expected, rtol=1e-4, atol=2e-3))
    # float32 may round a coordinate, a mean or a scale to the other side, though rarely.
    assert np.concatenate(wrong).mean() <= 0.002


@settings(max_examples=50)
@given(case=cases(integers=False), budget=st.integers(1, 30), times=st.integers(1, 4))
def test_refine(case: Case, budget: int, times: int) -> None:
    plain = SimulatedCodes(bits=1).fit(case.q0, case.k0)
    candidates = plain(case.q, case.k, times * min(budget, case.S))

    def choose(h: int, l: int, K: int) -> list[int]:
        tokens = [int(j) for j in candidates[h, l] if j >= 0]
        exact = {j: float(case.q[h, l] @ case.k[h // case.G, j]) for j in tokens}
        return sorted(sorted(tokens, key=lambda j: exact[j], reverse=True)[:K])

    refined = SimulatedCodes(bits=1, refine=times).fit(case.q0, case.k0)
    expect(case, refined(case.q, case.k, budget), budget, choose)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"metric": "cosine"}, "metric='cosine'; expected one of"),
        ({"bits": 4}, "bits=4"),
        ({"thresholds": "mean"}, "thresholds='mean'"),
        ({"group": "sum"}, "group='sum'"),
        ({"refine": -1}, "refine=-1; expected at least 0"),
        ({"metric": "l1", "block": 64}, "need estimated logits, and metric='l1'"),
        ({"metric": "xor", "group": "softmax"}, "group='softmax' need estimated logits"),
        ({"own_thresholds": True}, "own_thresholds cut queries"),
    ],
)
def test_wrong_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SimulatedCodes(**options)


def test_refine_reads_no_more_tokens_than_there_are() -> None:
    assert SimulatedCodes(refine=4).bytes_read(128, 300, 100) == 300 * 32 + 200 * 256
