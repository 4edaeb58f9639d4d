"""rerank: the reference against plain sums and sorts, and every backend to the bit."""

from __future__ import annotations

from dataclasses import replace
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from oracles import assert_same_bits
from strategies import UNIT, VALUES, Case, cases, selections

from adamas_core import Selection, reference
from adamas_core.reference.rerank import inner_products

# Kinds of values whose products and sums float32 holds exactly.
EXACT = ["small integers", "equal", "zeros"]


@st.composite
def chosen(draw: st.DrawFn, case: Case) -> NDArray[np.int32]:
    """Ascending indices (B, H, L, M). Rows hold different numbers of them and end with -1."""
    rows, S = case.q.shape[:3], case.k.shape[2]
    M = draw(st.sampled_from([0, 1, 2, 7, 33, 64, 99, 100, 101, 130, 300]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    every = draw(st.booleans())  # as many as there are, in every row
    indices = np.full((*rows, M), -1, np.int32)
    for row in np.ndindex(rows):
        n = min(M, S) if every else int(rng.integers(0, min(M, S) + 1))
        indices[row][:n] = np.sort(rng.choice(S, n, replace=False)) if n else 0
    return indices


def forced_tokens(tokens: list[int], selection: Selection) -> set[int]:
    """The first and the last tokens that are always taken."""
    return {*tokens[: selection.sinks], *tokens[max(len(tokens) - selection.recent, 0) :]}


def best(products: NDArray[Any], tokens: list[int], K: int, selection: Selection) -> list[int]:
    """K tokens: the forced ones, then the larger products, then the more recent; NaN is -inf."""
    forced = forced_tokens(tokens, selection)
    free = [(products[i], token) for i, token in enumerate(tokens) if token not in forced]
    free = [(-np.inf if np.isnan(x) else x, token) for x, token in free]
    free.sort(key=lambda pair: (-pair[0], -pair[1]))
    taken = sorted([*forced, *(token for _, token in free[: K - len(forced)])])
    return [*taken, *[-1] * (K - len(taken))]


@given(case=cases(), data=st.data())
def test_bits(kernels: ModuleType, case: Case, data: st.DataObject) -> None:
    indices = data.draw(chosen(case))
    args = (case.q, case.k, indices, *data.draw(selections(indices.shape[-1])))
    assert_same_bits(kernels.rerank(*args), reference.rerank(*args))


@given(case=cases(EXACT), data=st.data())
def test_is_a_sort_of_integers(case: Case, data: st.DataObject) -> None:
    """Where every product is exact no order of additions matters, and ties are many."""
    indices = data.draw(chosen(case))
    K, selection = data.draw(selections(indices.shape[-1]))
    got = reference.rerank(case.q, case.k, indices, K, selection)
    q, k = case.q.astype(np.int64), case.k.astype(np.int64)
    G = q.shape[1] // k.shape[1]
    for b, h, l in np.ndindex(q.shape[:3]):
        tokens = [s for s in indices[b, h, l].tolist() if s >= 0]
        products = k[b, h // G, tokens] @ q[b, h, l]
        assert got[b, h, l].tolist() == best(products, tokens, K, selection)


@given(case=cases(UNIT), data=st.data())
def test_nothing_clearly_better_is_left(case: Case, data: st.DataObject) -> None:
    """Compared by products in float64, within the bound of the error of a float32 sum."""
    indices = data.draw(chosen(case))
    K, selection = data.draw(selections(indices.shape[-1]))
    got = reference.rerank(case.q, case.k, indices, K, selection)
    q, k = case.q.astype(np.float64), case.k.astype(np.float64)
    G, D = q.shape[1] // k.shape[1], q.shape[-1]
    for b, h, l in np.ndindex(q.shape[:3]):
        tokens = [s for s in indices[b, h, l].tolist() if s >= 0]
        kept = [s for s in got[b, h, l].tolist() if s >= 0]
        assert len(kept) == min(K, len(tokens))
        assert set(kept) <= set(tokens)
        forced = forced_tokens(tokens, selection)
        assert forced <= set(kept)
        left = sorted(set(tokens) - set(kept))
        free = sorted(set(kept) - forced)
        if left and free:
            keys = k[b, h // G]
            size = np.abs(keys[left + free]) @ np.abs(q[b, h, l])
            # One rounding per product, fewer than D / 16 + 4 additions, and products of subnormals.
            bound = 2 * ((D / 16 + 5) * 2.0**-24 * size.max() + D * 2.0**-149)
            assert (keys[free] @ q[b, h, l]).min() >= (keys[left] @ q[b, h, l]).max() - bound


@given(case=cases(VALUES), data=st.data())
def test_order_of_the_sum(case: Case, data: st.DataObject) -> None:
    """Sixteen sums take the numbers in turn. Then the upper half is added to the lower."""
    if not case.k.shape[2]:
        return
    key = data.draw(st.integers(0, case.k.shape[2] - 1))
    q, k = case.q[0, 0, 0].astype(np.float32), case.k[0, 0, key].astype(np.float32)
    sums = [np.float32(0)] * 16
    with np.errstate(all="ignore"):
        for d, (x, y) in enumerate(zip(q, k, strict=True)):
            sums[d % 16] = np.float32(sums[d % 16] + np.float32(x * y))
        for half in (8, 4, 2, 1):
            sums = [np.float32(sums[j] + sums[j + half]) for j in range(half)]
    assert_same_bits(inner_products(case.q[0, 0, 0], case.k[0, 0, [key]]), np.array(sums))


@settings(max_examples=50)
@given(case=cases(), data=st.data())
def test_refining_everything_is_exact(kernels: Any, case: Case, data: st.DataObject) -> None:
    """Where refine * budget covers all tokens, the codes decide nothing."""
    S = case.tokens
    K, selection = data.draw(selections(S))
    selection = replace(selection, refine=-(-max(S, 1) // K))
    got = kernels.select_topk(case.q, case.codes, K, selection, case.k)
    B, H, L, _ = case.q.shape
    G = H // case.k.shape[1]
    for b, h, l in np.ndindex(B, H, L):
        n = int(np.broadcast_to(case.length, B)[b])
        tokens = list(range(max(n - (L - 1 - l), 0)))
        products = inner_products(case.q[b, h, l], case.k[b, h // G, tokens])
        assert got[b, h, l].tolist() == best(products, tokens, K, selection)


def test_golden(every: ModuleType) -> None:
    top, tiny = np.finfo(np.float32).max, np.finfo(np.float32).smallest_subnormal
    x = [np.nan, -np.inf, 3, np.nan, 3, -0.0, 0.0, np.inf, tiny, -tiny, -top, top]
    k = np.array(x, np.float32)[None, None, :, None]  # (1, 1, 12, 1)
    q = np.ones((1, 1, 1, 1), np.float32)
    indices = np.array([[[[*range(12), -1, -1]]]], np.int32)
    order = [7, 11, 4, 2, 8, 6, 5, 9, 10, 3, 1, 0]  # by product, of equal ones the later first
    for K in range(1, 13):
        assert every.rerank(q, k, indices, K, Selection()).tolist() == [[[sorted(order[:K])]]]
    assert every.rerank(q, k, indices, 14, Selection()).tolist() == indices.tolist()
    assert every.rerank(q, k, indices, 3, Selection(sinks=1, recent=1)).tolist() == [[[[0, 7, 11]]]]
    assert every.rerank(q, k, indices, 3, Selection(sinks=2, recent=1)).tolist() == [[[[0, 1, 11]]]]
    assert every.rerank(q, k, indices[..., :0], 2, Selection()).tolist() == [[[[-1, -1]]]]
    # Products 2^24, 1 and -2^24: in one lane the 1 is lost, in separate lanes it stays.
    q = np.full((1, 1, 1, 33), 1, np.float32)
    k = np.zeros((1, 1, 2, 33), np.float32)
    k[0, 0, 0, [0, 1, 16]] = k[0, 0, 1, [0, 16, 32]] = 2.0**24, 1, -(2.0**24)
    assert every.rerank(q, k, np.array([[[[0, 1]]]], np.int32), 1, Selection()).tolist() == [
        [[[0]]]
    ]


def test_the_longest_head(kernels: ModuleType) -> None:
    rng = np.random.default_rng(0)
    q, k = (rng.standard_normal((1, H, 90, 2048)).astype(np.float32) for H in (2, 1))
    indices = np.broadcast_to(np.arange(90, dtype=np.int32), (1, 2, 3, 90)).copy()
    args = (q[:, :, :3], k, indices, 20, Selection())
    assert_same_bits(kernels.rerank(*args), reference.rerank(*args))


def test_tokens_that_are_not_there(every: ModuleType) -> None:
    """An index of S or more is an error, and nothing is read outside of k."""
    q, k = np.ones((1, 1, 1, 8), np.float32), np.ones((1, 1, 5, 8), np.float32)
    indices = np.array([[[[0, 3, 4, -1]]]], np.int32)
    assert every.rerank(q, k, indices, 4, Selection()).tolist() == [[[[0, 3, 4, -1]]]]
    for last in (5, 2**31 - 1):
        indices[..., -1] = last
        with pytest.raises(IndexError, match=str(last)):
            every.rerank(q, k, indices, 4, Selection())
