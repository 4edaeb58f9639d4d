"""The promises of the interface, kept by every selector."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from lab_oracles import Case, budgets, cases, normal

from adamas_core import attend
from adamas_core.lab.selectors import (
    SELECTORS,
    Adamas,
    AdamasTail,
    AdaptiveBudgets,
    DoubleSparsity,
    Form,
    Loki,
    SimulatedCodes,
    VAttention,
    attended,
    bytes_of_rows,
)
from adamas_core.selection import Selection

# One of each, and options that no entry of SELECTORS has.
ALL: dict[str, Any] = {
    **{name: method for name, method in SELECTORS.items() if not isinstance(method, Form)},
    "forced": Adamas(selection=Selection(sinks=2, recent=3)),
    "forced, group": Adamas(selection=Selection(group=True, sinks=1, recent=2)),
    "refine, forced": Adamas(selection=Selection(refine=2, sinks=1)),
    "plain, forced": Adamas(selection=Selection(sinks=2, recent=3), thresholds="rms"),
    "plain, forced, group": Adamas(
        selection=Selection(group=True, sinks=1, recent=2), thresholds="rms"
    ),
    "one bit": SimulatedCodes(bits=1),
    "three bits": SimulatedCodes(bits=3),
    "octiles": SimulatedCodes(bits=3, thresholds="quartiles"),
    "three bits, l1, each token's rms": SimulatedCodes(metric="l1", bits=3, thresholds="token"),
    "l2, own": SimulatedCodes(metric="l2", own_thresholds=True, thresholds="token"),
    "untransformed": SimulatedCodes(transform=False),
    "untransformed, l1": SimulatedCodes(metric="l1", transform=False),
    "float query": SimulatedCodes(query_bits=None),
    "means before": SimulatedCodes(thresholds="token", scale=True, block=8),
    "means, refine": SimulatedCodes(thresholds="token", scale=True, block=8, recode=True, refine=2),
    "softmax": SimulatedCodes(group="softmax"),
    "nearest of l1": SimulatedCodes(metric="l1", group="nearest"),
    "group, refine": SimulatedCodes(bits=1, group="softmax", refine=3),
    "adaptive, means": AdaptiveBudgets(
        inner=SimulatedCodes(block=8, scale=True), least=0.5, most=2.0
    ),
}


FORMS: dict[str, Any] = {
    **{name: method for name, method in SELECTORS.items() if isinstance(method, Form)},
    "small tail": AdamasTail(3),
    "a small sample": VAttention(share=4, forced=8),
}
SINGLE_STEPS = [name for name in ALL if name != "h2o"]  # H2O needs sums that a single step lacks


@pytest.mark.parametrize("name", ALL)
@settings(max_examples=20)
@given(case=cases(integers=False), budget=budgets)
def test_indices_are_visible_ascending_and_as_many_as_asked(
    name: str, case: Case, budget: int
) -> None:
    got = ALL[name].fit(case.q0, case.k0)(case.q, case.k, budget)
    assert got.dtype == np.int32
    assert got.shape[:2] == (case.H, case.L)
    adaptive = name.startswith("ada") and isinstance(ALL[name], AdaptiveBudgets)
    if name != "full" and not adaptive:
        assert got.shape[2] == min(budget, case.S)
    for h, l in np.ndindex(case.H, case.L):
        chosen = got[h, l][got[h, l] >= 0]
        assert (got[h, l, len(chosen) :] == -1).all()
        assert (np.diff(chosen) > 0).all()
        assert chosen.size and chosen[-1] <= case.own(l)
        if name == "full":
            assert len(chosen) == case.own(l) + 1
        elif not adaptive:
            assert len(chosen) == min(budget, case.own(l) + 1)


@pytest.mark.parametrize("name", SINGLE_STEPS)
@settings(max_examples=20)
@given(case=cases(integers=False), budget=budgets)
def test_a_block_gives_what_single_steps_give(name: str, case: Case, budget: int) -> None:
    fitted = ALL[name].fit(case.q0, case.k0)
    block = fitted(case.q, case.k, budget)
    for l in range(case.L):
        step = fitted(case.q[:, l : l + 1], case.k[:, : case.own(l) + 1], budget)[:, 0]
        for h in range(case.H):
            assert [j for j in block[h, l] if j >= 0] == [j for j in step[h] if j >= 0], (h, l)


@pytest.mark.parametrize("name", ALL)
@settings(max_examples=20)
@given(case=cases(integers=False), budget=budgets)
def test_later_tokens_change_nothing(name: str, case: Case, budget: int) -> None:
    fitted = ALL[name].fit(case.q0, case.k0)
    before = fitted(case.q, case.k, budget)
    l = case.L // 2
    q, k = case.q.copy(), case.k.copy()
    q[:, l + 1 :] *= -3
    k[:, case.own(l) + 1 :] = 7 - k[:, case.own(l) + 1 :]
    after = fitted(q, k, budget)
    for h, i in np.ndindex(case.H, l + 1):
        assert [j for j in before[h, i] if j >= 0] == [j for j in after[h, i] if j >= 0]


@pytest.mark.parametrize("name", ALL)
def test_one_token(name: str) -> None:
    q, k = np.ones((2, 2, 4), np.float32), np.ones((1, 2, 4), np.float32)
    selector = ALL[name] if name == "h2o" else ALL[name].fit(q[:, :1], k[:, :1])
    got = selector(q[:, :1], k[:, :1], 5)
    np.testing.assert_array_equal(got[..., :1], np.zeros((2, 1, 1)))
    assert (got[..., 1:] == -1).all()


@pytest.mark.parametrize("name", ALL)
def test_wrong_arguments(name: str) -> None:
    case = normal(0, 4, 2, 20, 3, 16)
    selector = ALL[name].fit(case.q0, case.k0)
    with pytest.raises(ValueError, match=r"\(4, 3, 16\).*\(2, 2, 16\).*1 to 2 queries"):
        selector(case.q, case.k[:, :2], 4)
    with pytest.raises(ValueError, match="multiple of the KV heads"):
        selector(case.q[:3], case.k, 4)
    with pytest.raises(ValueError, match="head_dim 16"):
        selector(case.q[..., :8].copy(), case.k, 4)
    with pytest.raises(ValueError, match="budget=0; expected at least 1"):
        selector(case.q, case.k, 0)
    with pytest.raises(TypeError, match="k is float64"):
        selector(case.q, case.k.astype(np.float64), 4)


@pytest.mark.parametrize("name", FORMS)
@settings(max_examples=20)
@given(case=cases(integers=False), budget=budgets)
def test_a_block_of_a_form_gives_what_single_steps_give(name: str, case: Case, budget: int) -> None:
    fitted = FORMS[name].fit(case.q0, case.k0)
    block = fitted.attend(case.q, case.k, case.v, budget)
    assert (block.dtype, block.shape) == (np.float32, case.q.shape)
    for l in range(case.L):
        n = case.own(l) + 1
        step = fitted.attend(case.q[:, l : l + 1], case.k[:, :n], case.v[:, :n], budget)
        np.testing.assert_allclose(block[:, l], step[:, 0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", FORMS)
@settings(max_examples=20)
@given(case=cases(integers=False), budget=budgets)
def test_later_tokens_change_nothing_in_a_form(name: str, case: Case, budget: int) -> None:
    fitted = FORMS[name].fit(case.q0, case.k0)
    before = fitted.attend(case.q, case.k, case.v, budget)
    l = case.L // 2
    q, k, v = case.q.copy(), case.k.copy(), case.v.copy()
    q[:, l + 1 :] *= -3
    for x in (k, v):
        x[:, case.own(l) + 1 :] = 7 - x[:, case.own(l) + 1 :]
    after = fitted.attend(q, k, v, budget)
    np.testing.assert_allclose(after[:, : l + 1], before[:, : l + 1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", FORMS)
def test_a_form_with_a_budget_of_all_tokens_is_full_attention(name: str) -> None:
    case = normal(1, 4, 2, 40, 7, 16)
    got = FORMS[name].fit(case.q0, case.k0).attend(case.q, case.k, case.v, 80)
    np.testing.assert_allclose(got, attend(case.q, case.k, case.v, None), atol=1e-5)
    first = [x[:, :1].copy() for x in (case.q, case.k, case.v)]  # one token, without a prefix
    got = FORMS[name].attend(*first, 5)
    np.testing.assert_allclose(got[:, 0], np.repeat(first[2][:, 0], 2, axis=0), atol=1e-6)


@pytest.mark.parametrize("name", FORMS)
def test_wrong_arguments_of_a_form(name: str) -> None:
    case = normal(0, 4, 2, 20, 3, 16)
    form = FORMS[name].fit(case.q0, case.k0)
    with pytest.raises(ValueError, match=r"\(4, 3, 16\).*\(2, 2, 16\).*1 to 2 queries"):
        form.attend(case.q, case.k[:, :2], case.v[:, :2], 4)
    with pytest.raises(ValueError, match="budget=0; expected at least 1"):
        form.attend(case.q, case.k, case.v, 0)
    with pytest.raises(ValueError, match="v"):
        form.attend(case.q, case.k, case.v[:, :-1], 4)


def test_a_selector_attends_to_its_choice_alone() -> None:
    case = normal(2, 4, 2, 30, 5, 16)
    exact = SELECTORS["exact"]
    expected = attend(case.q, case.k, case.v, ALL["exact"](case.q, case.k, 6))
    np.testing.assert_array_equal(attended(exact, case.q, case.k, case.v, 6), expected)
    assert bytes_of_rows(exact, 16, 30, 6) == 6 * 64


@pytest.mark.parametrize(
    "selector",
    [DoubleSparsity(), Loki(), Adamas(thresholds="rms"), SimulatedCodes(), AdaptiveBudgets()],
)
def test_what_is_not_fitted_says_so(selector: Any) -> None:
    case = normal(0, 2, 1, 20, 3, 16)
    with pytest.raises(ValueError, match="fit it to a prefix first"):
        selector(case.q, case.k, 4)
