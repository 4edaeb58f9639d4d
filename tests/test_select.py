"""select_topk: the fused step is topk of score, to the bit."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from strategies import UNIT, budgets, cases
from test_score import metrics, query_planes
from tolerances import assert_same_bits

from adamas_core import encode, reference, select_topk
from adamas_core.reference.score import INVISIBLE

prefilters = st.sampled_from([0, 0, 1, 2, 8])
refines = st.sampled_from([0, 0, 1, 2, 4])


@given(case=cases(), form=metrics, data=st.data())
def test_bits(kernels: ModuleType, case: Any, form: tuple[str, int], data: st.DataObject) -> None:
    K, sinks, recent = data.draw(budgets(case.codes.tokens))
    options = (*form, sinks, recent, data.draw(prefilters), data.draw(refines), case.k)
    args = (case.q, case.codes, K, *options)
    assert_same_bits(kernels.select_topk(*args), reference.select_topk(*args))


@given(case=cases(UNIT), form=metrics, data=st.data())
def test_attention_over_what_is_selected(
    kernels: ModuleType, case: Any, form: tuple[str, int], data: st.DataObject
) -> None:
    K, sinks, recent = data.draw(budgets(case.codes.tokens))
    options = (K, *form, sinks, recent, data.draw(prefilters), data.draw(refines))
    scale = data.draw(st.sampled_from([None, 0.05]))
    got = kernels.attend_topk(*case[:4], *options, scale)
    indices = reference.select_topk(case.q, case.codes, *options, case.k)
    for x, expected in zip(got, kernels.attend(*case[:3], indices, scale, True), strict=True):
        assert_same_bits(x, expected)


@given(case=cases(), form=metrics, data=st.data())
def test_prefilter_of_the_reference(case: Any, form: tuple[str, int], data: st.DataObject) -> None:
    """Two selections, one after the other, each a sort by distance and then age."""
    K, m = data.draw(st.integers(1, 40)), data.draw(st.integers(1, 5))
    got = reference.select_topk(case.q, case.codes, K, *form, prefilter=m)
    query, S = query_planes(case, *form), case.codes.tokens
    both, high = case.codes.planes, case.codes.planes[[0, 0]]  # the signs as codes 0 and 3
    distances, coarse = (reference.score(query, x, case.length, form[0]) for x in (both, high))
    for row in np.ndindex(got.shape[:3]):
        visible = [s for s in range(S) if distances[row][s] != INVISIBLE]
        near = sorted(visible, key=lambda s: (coarse[row][s], -s))[: m * K]
        chosen = sorted(near, key=lambda s: (distances[row][s], -s))[:K]
        assert got[row].tolist() == [*sorted(chosen), *[-1] * (K - len(chosen))]


@given(case=cases(), form=metrics, data=st.data())
def test_is_topk_of_score(
    backend: ModuleType, case: Any, form: tuple[str, int], data: st.DataObject
) -> None:
    K, sinks, recent = data.draw(budgets(case.codes.tokens))
    metric, bits = form
    x = backend.hadamard(case.q)
    if metric == "weighted":
        query = backend.quantize_query(x, bits)
    else:
        G = case.q.shape[1] // case.k.shape[1]
        query = backend.quantize(x, np.repeat(case.codes.thresholds, G, axis=0))
    d = backend.score(query, case.codes.planes, case.codes.length, metric)
    fused = backend.select_topk(case.q, case.codes, K, metric, bits, sinks, recent)
    assert_same_bits(fused, backend.topk(d, K, sinks, recent))


def test_finds_the_key_that_matches() -> None:
    rng = np.random.default_rng(0)
    k = rng.standard_normal((2, 4, 3000, 128)).astype(np.float32)
    codes = encode(k)
    for s in (0, 63, 64, 1777, 2999):
        q = np.repeat(4 * k[:, :, s : s + 1], 3, axis=1)  # (B, H, 1, D), three heads a KV head
        assert (select_topk(q, codes, budget=1) == s).all()
