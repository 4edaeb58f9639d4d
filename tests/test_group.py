"""A group's choice: against softmax in float64, and its integer weights."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from strategies import UNIT, cases

from adamas_core import Selection, reference
from adamas_core.reference.estimate import estimate
from adamas_core.reference.group import STEPS, WEIGHTS, attention, levels
from adamas_core.reference.layout import INVISIBLE


@given(case=cases(UNIT, centered=True), data=st.data())
def test_a_group_takes_what_its_heads_attend_to(case: Any, data: st.DataObject) -> None:
    """The tokens with the most attention by float64 softmax, up to a quarter of an octave."""
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


def test_a_weight_halves_every_four_levels() -> None:
    np.testing.assert_array_equal(WEIGHTS, np.rint(2 ** (16 - np.arange(STEPS) / STEPS)))
    level = np.array([0, -1, -4, -8, -64, -68, -1000], np.int64)[None, None, None]
    seen = np.ones_like(level, bool)
    weight = np.array([65536, 55109, 32768, 16384, 1, 0, 0], np.float32)
    expected = weight * (np.float32(1) / np.float32(weight.sum()))
    np.testing.assert_array_equal(attention(level, seen, 1)[0, 0, 0], expected)


def test_levels_are_quarters_of_an_octave() -> None:
    logits = np.array([0, np.log(2), -np.log(2) * 2.01, np.nan, np.inf, -np.inf], np.float32)
    got = levels(logits * np.float32(8), 64**-0.5)
    assert got.tolist()[:1] == [0]
    assert abs(int(got[1]) - 4) <= 1
    assert got.tolist()[2:] == [-9, -(2**15), 2**15 - 1, -(2**15)]
