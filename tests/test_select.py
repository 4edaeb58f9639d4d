"""select_topk: the fused step is topk of score, to the bit."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from strategies import budgets, cases
from test_score import metrics
from tolerances import assert_same_bits

from adamas_core import encode, reference, select_topk


@given(case=cases(), form=metrics, data=st.data())
def test_bits(kernels: ModuleType, case: Any, form: tuple[str, int], data: st.DataObject) -> None:
    K, sinks, recent = data.draw(budgets(case.codes.tokens))
    args = (case.q, case.codes, K, form[0], form[1], sinks, recent)
    assert_same_bits(kernels.select_topk(*args), reference.select_topk(*args))


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
