"""select_topk: the fused step is topk of score, to the bit."""

from __future__ import annotations

from dataclasses import replace
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import assert_same_bits, query_planes
from strategies import UNIT, cases, metrics, selections

from adamas_core import Selection, Softmax, encode, reference, select_topk

refines = st.sampled_from([0, 0, 1, 2, 4])
weighted_bits = st.integers(2, 6)  # more overflow at the longest heads


def options_of(form: Selection) -> dict[str, Any]:
    """The form of the query, as options of another selection."""
    return {"metric": form.metric, "query_bits": form.query_bits}


@given(case=cases(), form=metrics, data=st.data())
def test_bits(kernels: ModuleType, case: Any, form: Selection, data: st.DataObject) -> None:
    K, selection = data.draw(selections(case.tokens, **options_of(form)))
    selection = replace(selection, refine=data.draw(refines))
    args = (case.q, case.codes, K, selection, case.k)
    assert_same_bits(kernels.select_topk(*args), reference.select_topk(*args))


@settings(max_examples=100)
@given(case=cases(centered=True), bits=weighted_bits, data=st.data())
def test_bits_of_centered_codes(
    kernels: ModuleType, case: Any, bits: int, data: st.DataObject
) -> None:
    K, selection = data.draw(selections(case.tokens, query_bits=bits))
    selection = replace(selection, refine=data.draw(refines))
    args = (case.q, case.codes, K, selection, case.k)
    assert_same_bits(kernels.select_topk(*args), reference.select_topk(*args))


@settings(max_examples=100)
@given(case=st.booleans().flatmap(lambda c: cases(centered=c)), bits=weighted_bits, data=st.data())
def test_bits_of_a_group(kernels: ModuleType, case: Any, bits: int, data: st.DataObject) -> None:
    K, selection = data.draw(selections(case.tokens, query_bits=bits, group=True))
    args = (case.q, case.codes, K, selection)
    assert_same_bits(kernels.select_topk(*args), reference.select_topk(*args))


@settings(max_examples=50)
@given(case=cases(UNIT, centered=True), group=st.booleans(), data=st.data())
def test_attention_over_centered_codes(
    kernels: ModuleType, case: Any, group: bool, data: st.DataObject
) -> None:
    K, selection = data.draw(selections(case.tokens, group=group))
    got = kernels.attend_topk(*case[:4], K, selection)
    indices = reference.select_topk(case.q, case.codes, K, selection)
    for x, expected in zip(got, kernels.attend(*case[:3], indices, None, True), strict=True):
        assert_same_bits(x, expected)


@pytest.mark.parametrize("centered", [False, True])
@pytest.mark.parametrize("order", ["equal", "ascending", "descending", "two values"])
def test_many_tokens(kernels: ModuleType, order: str, centered: bool) -> None:
    """More tokens than a chunk, in the orders that are hardest to select from."""
    S = 70_000 if isinstance(kernels, ModuleType) else 5_000  # chunks are smaller in the shim
    D = 32
    rng = np.random.default_rng(1)
    along = {
        "equal": np.ones(S),
        "ascending": np.linspace(-1, 1, S),
        "descending": np.linspace(1, -1, S),
        "two values": rng.choice([-1.0, 1.0], S),
    }[order].astype(np.float32)
    k = along[:, None] * np.ones((1, 1, 1, D), np.float32)
    k += np.float32(0.3) * rng.standard_normal(k.shape).astype(np.float32) * (order != "equal")
    q = rng.standard_normal((1, 2, 1, D)).astype(np.float32) + np.float32(1)
    codes = encode(k, backend="reference", centered=centered).record
    for K, group in [(5, False), (700, False), (5, True), (700, True)]:
        args = (q, codes, K, Selection(sinks=1, recent=2, group=group))
        assert_same_bits(kernels.select_topk(*args), reference.select_topk(*args))


@given(case=cases(UNIT), form=metrics, data=st.data())
def test_attention_over_what_is_selected(
    kernels: ModuleType, case: Any, form: Selection, data: st.DataObject
) -> None:
    K, selection = data.draw(selections(case.tokens, **options_of(form)))
    selection = replace(selection, refine=data.draw(refines))
    softmax = Softmax(data.draw(st.sampled_from([None, 0.05])))
    got = kernels.attend_topk(*case[:4], K, selection, softmax)
    indices = reference.select_topk(case.q, case.codes, K, selection, case.k)
    for x, expected in zip(got, kernels.attend(*case[:3], indices, softmax, True), strict=True):
        assert_same_bits(x, expected)


@given(case=cases(), form=metrics, data=st.data())
def test_is_topk_of_score(
    backend: ModuleType, case: Any, form: Selection, data: st.DataObject
) -> None:
    K, selection = data.draw(selections(case.tokens, **options_of(form)))
    query = query_planes(case, form)
    d = backend.score(query, case.codes.planes, case.codes.length, form.metric)
    fused = backend.select_topk(case.q, case.codes, K, selection)
    assert_same_bits(fused, backend.topk(d, K, selection))


def test_finds_the_key_that_matches() -> None:
    rng = np.random.default_rng(0)
    k = rng.standard_normal((2, 4, 3000, 128)).astype(np.float32)
    codes = encode(k)
    for s in (0, 63, 64, 1777, 2999):
        q = np.repeat(4 * k[:, :, s : s + 1], 3, axis=1)  # (B, H, 1, D), three heads a KV head
        assert (select_topk(q, codes, budget=1) == s).all()


def test_options_by_keyword_are_fields_of_the_selection() -> None:
    k = np.random.default_rng(0).standard_normal((2, 300, 64)).astype(np.float32)
    codes, q = encode(k, centered=False), k[:, :1]
    for options in ({"sinks": 3}, {"metric": "manhattan"}, {"refine": 2, "recent": 1}):
        got = select_topk(q, codes, 9, Selection(query_bits=3), k, **options)
        expected = select_topk(q, codes, 9, Selection(query_bits=3, **options), k)
        assert_same_bits(got, expected)
