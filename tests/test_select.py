"""select_topk: the fused step is topk of score, to the bit."""

from __future__ import annotations

from dataclasses import replace
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import query_planes
from strategies import UNIT, cases, metrics, selections
from tolerances import assert_same_bits

from adamas_core import Selection, encode, reference, select_topk
from adamas_core.reference.center import scale_of
from adamas_core.reference.estimate import estimate
from adamas_core.reference.layout import INVISIBLE
from adamas_core.reference.quantize import from_planes, unpack_bits

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
    """Beyond a chunk, in orders that make selections work hardest, with and without a group."""
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


@given(case=st.booleans().flatmap(lambda c: cases(UNIT, centered=c)), bits=weighted_bits)
def test_estimates_are_products_with_what_is_read_back(case: Any, bits: int) -> None:
    """In float64, from codes and weights that are unpacked one by one."""
    codes, S = case.codes, case.tokens
    x = reference.hadamard(case.q)
    query = reference.quantize_query(x, bits)
    d = reference.score(query, codes.planes, S)
    got = estimate(x, query, d, codes)
    Dt, P, G = x.shape[-1], codes.planes.shape[5], case.q.shape[1] // case.k.shape[1]
    high, low = np.split(unpack_bits(from_planes(codes.planes))[:, :, :S], 2, axis=-1)
    u = (2.0 * high + low - 1.5)[..., :Dt]  # (B, H_kv, S, Dt)
    if codes.centers is None:
        t = codes.thresholds.astype(np.float64)
        y = u * ((t[:, 2] - t[:, 0]) / 2)[:, None, None]
        q = np.zeros_like(x, np.float64)
    else:
        means, scales, _ = codes.centers
        s = scale_of(scales).reshape(*scales.shape[:2], -1)[:, :, :S, None]
        y = u * s.astype(np.float64)
        mean = np.repeat(means.astype(np.float64), 64, axis=2)[:, :, :S]
        q = np.einsum("bhld,bhsd->bhls", x.astype(np.float64), np.repeat(mean, G, axis=1))
    planes = unpack_bits(query).reshape(*x.shape[:3], bits, 64 * P)[..., :Dt].astype(np.int64)
    weight = sum(planes[..., i, :] << (bits - 1 - i) for i in range(1, bits))
    top = abs(x).max(axis=-1, keepdims=True).astype(np.float64)
    read = np.where(planes[..., 0, :] == 1, 1, -1) * weight * top / (2 ** (bits - 1) - 1)
    expected = np.einsum("bhld,bhsd->bhls", read, np.repeat(y, G, axis=1))
    if codes.centers is not None:
        expected += q
    seen = d != INVISIBLE
    size = abs(read).sum(axis=-1)[..., None] * (abs(y).max(initial=0) + 1e-30) + (
        abs(x).sum(axis=-1)[..., None] * abs(case.k.astype(np.float64)).max(initial=0) * Dt
    )
    assert (abs(got - expected) <= 2e-6 * size + 1e-30)[seen].all()


@given(case=cases(UNIT, centered=True), data=st.data())
def test_a_group_takes_what_its_heads_attend_to(case: Any, data: st.DataObject) -> None:
    """As the mean of float64 softmaxes would rank tokens, but for the quarters of an octave."""
    B, H, L, D = case.q.shape
    H_kv, S = case.k.shape[1], case.tokens
    G = H // H_kv
    K = data.draw(st.integers(1, S + 5))
    chosen = reference.select_topk(case.q, case.codes, K, Selection(group=True))
    x = reference.hadamard(case.q)
    query = reference.quantize_query(x)
    d = reference.score(query, case.codes.planes, case.codes.length)
    logits = estimate(x, query, d, case.codes).astype(np.float64) * D**-0.5
    logits[d == INVISIBLE] = -np.inf
    for b, h, l in np.ndindex(B, H_kv, L):
        rows = logits[b, h * G : (h + 1) * G, l]
        visible = np.flatnonzero(rows[0] != -np.inf)
        indices = chosen[b, h * G, l]
        assert (chosen[b, h * G : (h + 1) * G, l] == indices).all()
        taken = indices[indices >= 0]
        assert len(taken) == min(K, len(visible))
        if len(taken) == 0:
            continue
        p = np.exp(rows[:, visible] - rows[:, visible].max(axis=1, keepdims=True))
        share = (p / p.sum(axis=1, keepdims=True)).sum(axis=0)
        best = np.sort(share)[::-1][: len(taken)].sum()
        assert share[np.isin(visible, taken)].sum() >= best * 2**-0.25 - 2e-4 * G


@given(case=cases(UNIT), form=metrics, data=st.data())
def test_attention_over_what_is_selected(
    kernels: ModuleType, case: Any, form: Selection, data: st.DataObject
) -> None:
    K, selection = data.draw(selections(case.tokens, **options_of(form)))
    selection = replace(selection, refine=data.draw(refines))
    scale = data.draw(st.sampled_from([None, 0.05]))
    got = kernels.attend_topk(*case[:4], K, selection, scale)
    indices = reference.select_topk(case.q, case.codes, K, selection, case.k)
    for x, expected in zip(got, kernels.attend(*case[:3], indices, scale, True), strict=True):
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
    codes, q = encode(k), k[:, :1]
    for options in ({"sinks": 3}, {"metric": "manhattan"}, {"refine": 2, "recent": 1}):
        got = select_topk(q, codes, 9, Selection(query_bits=3), k, **options)
        expected = select_topk(q, codes, 9, Selection(query_bits=3, **options), k)
        assert_same_bits(got, expected)
