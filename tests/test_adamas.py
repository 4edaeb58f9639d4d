"""The selector over the library: what `select_topk` gives for single steps."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from lab_oracles import Case, budgets, cases, normal

from adamas_core import PAPER, calibrate, encode
from adamas_core.lab.selectors import Adamas, Exact
from adamas_core.select import select_topk
from adamas_core.selection import Selection


@given(case=cases(integers=False, dims=(4, 16, 20)), budget=budgets, data=st.data())
def test_plain_codes(case: Case, budget: int, data: st.DataObject) -> None:
    K = min(budget, case.S)
    sinks = data.draw(st.integers(0, K))
    selection = Selection(
        metric=data.draw(st.sampled_from(["weighted", "manhattan"])),
        query_bits=data.draw(st.integers(2, 8)),
        sinks=sinks,
        recent=data.draw(st.integers(0, K - sinks)),
        refine=data.draw(st.sampled_from([0, 2])),
    )
    rule = data.draw(st.sampled_from(["rms", "quartiles", "published"]))
    selector = Adamas("any", selection, rule).fit(case.q0, case.k0)
    thresholds = PAPER if rule == "published" else calibrate(case.k0, rule)
    codes = encode(case.k, thresholds, backend="reference")
    expected = select_topk(case.q, codes, K, selection, k=case.k)
    np.testing.assert_array_equal(selector(case.q, case.k, budget), expected)


OPTIONS = {
    "plain": {},
    "forced": {"sinks": 2, "recent": 70},
    "refine": {"refine": 2},
    "group": {"group": True},
}


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize(
    ("S", "L"), [(200, 150), (130, 66), (70, 69), (64, 3), (63, 2), (128, 1), (100, 100)]
)
def test_centered_codes_of_a_block_are_those_of_single_steps(S: int, L: int, options: str) -> None:
    case = normal(S, 4, 2, S, L, 16)
    selector = Adamas(selection=Selection(**OPTIONS[options]))  # type: ignore[arg-type]
    got = selector.fit(case.q0, case.k0)(case.q, case.k, 20)
    assert got.shape == (4, L, 20)
    for l in range(L):
        n = case.own(l) + 1
        K = min(20, n)
        codes = encode(case.k[:, :n], backend="reference")
        sinks = min(selector.selection.sinks, K)
        recent = min(selector.selection.recent, K - sinks)
        expected = select_topk(
            case.q[:, l : l + 1], codes, K, selector.selection, case.k, sinks=sinks, recent=recent
        )
        np.testing.assert_array_equal(got[:, l, :K], expected[:, 0])
        assert (got[:, l, K:] == -1).all()


def test_a_query_sees_no_code_that_a_later_token_made() -> None:
    """Token 63 fills the first tile, whose tokens are then coded again."""
    case = normal(12, 2, 1, 64, 8, 16)
    selector = Adamas()
    before = selector(case.q, case.k, 12)
    other = case.k.copy()
    other[:, 63] = 50
    np.testing.assert_array_equal(selector(case.q, other, 12)[:, :-1], before[:, :-1])
    at_once = select_topk(case.q, encode(case.k), 12)
    assert (at_once[:, :-1] != before[:, :-1]).any()  # this is what the groups are for


def test_refining_all_is_exact() -> None:
    case = normal(7, 6, 2, 100, 8, 16)
    refined = Adamas(selection=Selection(refine=10), thresholds="rms").fit(case.q0, case.k0)(
        case.q, case.k, 10
    )
    np.testing.assert_array_equal(refined, Exact()(case.q, case.k, 10))


def test_thresholds() -> None:
    case = normal(6, 2, 2, 300, 5, 64)
    found = Adamas(thresholds="rms", stretch=1.5).fit(case.q0, case.k0).fitted
    assert found is not None
    np.testing.assert_allclose(found, 1.5 * calibrate(case.k0), rtol=1e-6)
    published = Adamas(thresholds="published").fit(case.q0, case.k0).fitted
    assert published is not None
    assert published.tolist() == [[-10, 0, 10]] * 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"thresholds": "mean"}, "thresholds='mean'; expected one of"),
        ({"thresholds": "rms", "stretch": np.nan}, "stretch=nan; expected a finite number above 0"),
        ({"stretch": 2.0}, r"thresholds=None with stretch=2\.0; expected stretch=1, because"),
    ],
)
def test_wrong_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Adamas(**options)


def test_refine_reads_no_more_tokens_than_there_are() -> None:
    refined = Adamas(selection=Selection(refine=4))
    assert refined.bytes_read(128, 300, 100) == 300 * 37 + 200 * 256
