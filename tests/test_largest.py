"""The largest scores among visible tokens, against sorting."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from lab_oracles import best
from strategies import seeds

from adamas_core.lab.selectors.largest import hide, largest, only


@settings(max_examples=50)
@given(
    S=st.integers(1, 30),
    L=st.integers(1, 5),
    K=st.integers(1, 40),
    recent=st.integers(0, 3),
    seed=seeds,
)
def test_largest(S: int, L: int, K: int, recent: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    L, K = min(L, S), min(K, S)
    scores = rng.integers(-3, 4, (2, L, S)).astype(np.float32)
    own = np.arange(S - L, S)
    got = largest(scores, own, K, recent)
    assert (got.dtype, got.shape) == (np.int32, (2, L, K))
    for h, l in np.ndindex(2, L):
        row = scores[h, l, : own[l] + 1].copy()
        row[max(len(row) - recent, 0) :] = np.inf
        assert [j for j in got[h, l] if j >= 0] == best(row.tolist(), K)


def test_a_number_of_tokens_for_each_query() -> None:
    scores = np.arange(12, dtype=np.float32).reshape(1, 2, 6)
    got = largest(scores, np.array([4, 5]), np.array([[1, 3]]))
    assert got.tolist() == [[[4, -1, -1], [3, 4, 5]]]


def test_hide_and_only() -> None:
    scores = np.arange(8, dtype=np.float32).reshape(2, 4)
    hidden = hide(scores, np.array([1, 3]))
    assert hidden.tolist() == [[0, 1, -np.inf, -np.inf], [4, 5, 6, 7]]
    left = only(scores, np.array([[2, -1], [0, 3]], np.int32))
    assert left.tolist() == [[-np.inf, -np.inf, 2, -np.inf], [4, -np.inf, -np.inf, 7]]
