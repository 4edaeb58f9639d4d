"""The public operations: merge, and the options that they read."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from oracles import exact_attention
from strategies import UNIT, Case, cases

from adamas_core import Selection, merge, reference, topk


@given(case=cases(UNIT), data=st.data())
def test_merge_of_parts_is_the_whole(case: Case, data: st.DataObject) -> None:
    B, H, L, _ = case.q.shape
    S = case.k.shape[2]
    cuts = sorted(data.draw(st.lists(st.integers(0, S), max_size=3)))
    tokens = np.broadcast_to(np.arange(S, dtype=np.int32), (B, H, L, S))
    parts = [
        reference.attend(case.q, case.k, case.v, tokens[..., a:b], None, True)
        for a, b in zip([0, *cuts], [*cuts, S], strict=True)
    ]
    out, lse = merge([p[0] for p in parts], [p[1] for p in parts])
    expected, expected_lse = exact_attention(*case[:3], tokens)
    assert out.dtype == case.q.dtype
    step = {"float32": 2e-6, "float16": 2e-3, "bfloat16": 2e-2}[case.q.dtype.name]
    np.testing.assert_allclose(out.astype(np.float64), expected, atol=step, rtol=step)
    np.testing.assert_allclose(lse, expected_lse, rtol=1e-6, atol=1e-6)


def test_merge_of_nothing() -> None:
    out, lse = merge([np.zeros((2, 3), np.float32)] * 2, [np.full(2, -np.inf, np.float32)] * 2)
    assert not out.any()
    assert (lse == -np.inf).all()


def test_merge_errors() -> None:
    x = np.zeros((2, 3), np.float32)
    with pytest.raises(ValueError, match="0 outs"):
        merge([], [])
    with pytest.raises(ValueError, match=r"lse \(3,\)"):
        merge([x], [np.zeros(3, np.float32)])


def test_topk_reads_sinks_and_recent() -> None:
    d = np.array([9, 1, 2, 3, 9], np.uint16)
    assert topk(d, 3).tolist() == [1, 2, 3]
    assert topk(d, 3, Selection(sinks=1, recent=1)).tolist() == [0, 1, 4]
    assert topk(d, 3, Selection(metric="manhattan", refine=2)).tolist() == [1, 2, 3]
