"""Positions: each query gets what it would get alone, over the tokens that it sees."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from oracles import ATTEND, assert_attention, assert_same_bits, exact_attention
from strategies import UNIT, cases, metrics, selections

from adamas_core import (
    KeyCodes,
    KVCache,
    Selection,
    Softmax,
    attend,
    decode_attention,
    encode,
    reference,
    select_topk,
)
from adamas_core.dispatch import on_host
from adamas_core.positions import runs
from adamas_core.softmax import PLAIN

Place = Callable[[NDArray[Any]], Any]

SHAPES = ["all", "rising", "alike", "tree", "any"]


@st.composite
def positions(draw: st.DrawFn, L: int, lengths: NDArray[Any]) -> tuple[Any, NDArray[np.int64]]:
    """The argument, and the number of tokens (B, L) that each query sees."""
    shape = draw(st.sampled_from(SHAPES))
    B = len(lengths)
    if shape == "all":
        return "all", np.repeat(lengths[:, None], L, axis=1)
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    last = rng.integers(0, lengths + 1)[:, None]  # (B, 1)
    if shape == "rising":
        seen = np.maximum(last - np.arange(L)[::-1], 0)
    elif shape == "alike":
        seen = np.repeat(last, L, axis=1)
    elif shape == "tree":
        seen = np.maximum(last - rng.integers(0, 3, L), 0)
    else:
        seen = rng.integers(0, lengths[:, None] + 1, (B, L))
    if (seen == seen[0]).all() and draw(st.booleans()):
        return draw(st.sampled_from([list, np.array]))(seen[0] - 1), seen
    return seen - 1, seen


def lengths_of(case: Any) -> NDArray[np.int64]:
    return np.broadcast_to(case.length, (len(case.q),)).astype(np.int64)


def alone(case: Any, seen: NDArray[np.int64], budget: int, selection: Selection, scale: Any) -> Any:
    """Indices by the reference, query by query, over codes whose length is what the query sees."""
    B, H, L, _ = case.q.shape
    found = np.empty((B, H, L, budget), np.int32)
    for l in range(L):
        codes = case.codes._replace(length=seen[:, l])
        args = (case.q[:, :, l : l + 1], codes, budget, selection, case.k, scale)
        found[:, :, l : l + 1] = reference.select_topk(*args)
    return found


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@settings(max_examples=150)
@given(centered=st.booleans(), form=metrics, group=st.booleans(), data=st.data())
def test_a_query_selects_as_it_would_alone(
    backend: str, centered: bool, form: Selection, group: bool, data: st.DataObject
) -> None:
    case = data.draw(cases(centered=centered))
    if not case.tokens:
        return
    options: dict[str, Any] = {"query_bits": min(form.query_bits, 4)}
    if not centered and not group:
        options["metric"] = form.metric
    K, selection = data.draw(selections(case.tokens, group=group, **options))
    K = min(K, case.tokens)
    if selection.sinks + selection.recent > K:
        return
    if not group:
        selection = Selection(**{**vars(selection), "refine": data.draw(st.sampled_from([0, 2]))})
    at, seen = data.draw(positions(case.q.shape[2], lengths_of(case)))
    codes = KeyCodes.from_arrays(case.codes, case.q.shape[3], backend)
    k = case.k if selection.refine else None
    softmax = Softmax(scale=data.draw(st.sampled_from([None, 0.3])))
    got = select_topk(case.q, codes, K, selection, k, softmax, at)
    assert_same_bits(got, alone(case, seen, K, selection, softmax))


@settings(max_examples=100)
@given(case=cases(UNIT), windowed=st.booleans(), data=st.data())
def test_dense_attention(case: Any, windowed: bool, data: st.DataObject) -> None:
    B, H, L, _ = case.q.shape
    S = case.k.shape[2]
    at, seen = data.draw(positions(L, np.full(B, S)))
    window = data.draw(st.integers(1, 70)) if windowed else None
    rows = case.q, case.k, case.v
    softmax = Softmax(sink_logits=np.linspace(-3, 2, H)) if data.draw(st.booleans()) else PLAIN
    out, lse = attend(*rows, None, softmax, True, window, at)
    expected, expected_lse = np.zeros(case.q.shape), np.full((B, H, L), -np.inf)
    for b, l in np.ndindex(B, L):
        n = seen[b, l]
        first = 0 if window is None else max(n - window, 0)
        one = (slice(b, b + 1), slice(None), slice(first, n))
        q, chosen = case.q[b : b + 1, :, l : l + 1], np.arange(n - first, dtype=np.int32)
        indices = np.broadcast_to(chosen, (1, H, 1, n - first))
        o, s = exact_attention(q, case.k[one], case.v[one], indices, softmax)
        expected[b, :, l], expected_lse[b, :, l] = o[0, :, 0], s[0, :, 0]
    assert_attention(out, expected, case.q.dtype)
    np.testing.assert_allclose(lse, expected_lse, rtol=ATTEND, atol=ATTEND)


def normal(*shape: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("at", ["all", [9, -1, 59, 60, 61, 3], [0, 1, 2, 3, 4, 5], [70] * 6])
def test_on_each_device(place: Place, at: Any) -> None:
    """Dense, selected and through a cache: as each query alone, and as in NumPy."""
    q, k, v = normal(2, 4, 6, 32), normal(2, 2, 80, 32, seed=1), normal(2, 2, 80, 32, seed=2)
    there = [place(x) for x in (q, k, v)]
    seen = np.full(6, 80) if at == "all" else np.array(at) + 1
    codes = encode(there[1])
    for options in ({}, {"group": True}, {"refine": 2, "k": there[1]}):
        got = on_host(select_topk(there[0], codes, 7, positions=at, **options))
        for l, n in enumerate(map(int, seen)):
            if n == 0:
                assert (got[:, :, l] == -1).all()
                continue
            one = place(np.ascontiguousarray(q[:, :, l : l + 1]))
            own = KeyCodes.from_arrays(codes.arrays()._replace(length=n), 32)
            expected = on_host(select_topk(one, own, min(n, 7), **options))
            assert_same_bits(np.ascontiguousarray(got[:, :, l : l + 1, : min(n, 7)]), expected)
    out = on_host(attend(*there, None, positions=at))
    assert_attention(out, dense(q, k, v, seen), out.dtype)
    cache = KVCache(selection=Selection(tail=0))
    cache.append(*there[1:])
    got = on_host(decode_attention(there[0], cache, 7, positions=at))
    indices = select_topk(there[0], codes, 7, positions=at)
    np.testing.assert_allclose(got, on_host(attend(*there, indices)), atol=2e-6)
    got = on_host(decode_attention(there[0], cache, None, positions=at))
    assert_attention(got, dense(q, k, v, seen), got.dtype)


def dense(q: Any, k: Any, v: Any, seen: NDArray[Any]) -> NDArray[np.float64]:
    expected = np.zeros(q.shape)
    for l, n in enumerate(map(int, seen)):
        if n:
            one = q[:, :, l : l + 1], k[:, :, :n], v[:, :, :n]
            expected[:, :, l : l + 1] = exact_attention(*one, None)[0]
    return expected


def test_cross_attention_with_more_queries_than_keys() -> None:
    q, k, v = normal(3, 500, 64), normal(3, 40, 64, seed=1), normal(3, 40, 64, seed=2)
    out = attend(q, k, v, None, positions="all")
    assert_attention(out, dense(q[None], k[None], v[None], np.full(500, 40))[0], q.dtype)
    every = select_topk(q, encode(k), 40, positions="all")
    np.testing.assert_array_equal(every, np.broadcast_to(np.arange(40), every.shape))
    with pytest.raises(
        ValueError, match=r"q is float32 .* has 500 tokens and k 40; expected at mo"
    ):
        attend(q, k, v, None)


def test_many_query_heads_of_a_kv_head(place: Place) -> None:
    """A run becomes heads: 8 query heads of 40 tokens are 320 heads of one KV head."""
    q, k = normal(1, 8, 40, 64), normal(1, 1, 300, 64, seed=1)
    codes = encode(place(k))
    got = on_host(select_topk(place(q), codes, 20, positions="all"))
    expected = select_topk(q.reshape(1, 320, 1, 64), encode(k), 20)
    assert_same_bits(got, expected.reshape(1, 8, 40, 20))
    out = on_host(attend(place(q), place(k), place(k), None, positions="all"))
    assert_attention(out, dense(q, k, k, np.full(40, 300)), out.dtype)


def test_positions_of_a_batch_of_different_lengths(place: Place) -> None:
    q, k, v = normal(2, 2, 3, 32), normal(2, 2, 90, 32, seed=1), normal(2, 2, 90, 32, seed=2)
    cache = KVCache(selection=Selection(tail=0))
    cache.append(place(k), place(v), count=place(np.array([90, 40])))
    at = np.array([[89, 70, 70], [39, 20, 20]])
    for budget in (None, 5):
        got = on_host(decode_attention(place(q), cache, budget, positions=place(at)))
        for b in range(2):
            one = KVCache(selection=Selection(tail=0))
            n = [90, 40][b]
            one.append(k[b, :, :n], v[b, :, :n])
            expected = decode_attention(q[b], one, budget, positions=at[b])
            np.testing.assert_allclose(got[b], expected, atol=2e-6)


@given(
    seen=st.lists(st.lists(st.integers(0, 4), min_size=6, max_size=6), max_size=2),
    alone=st.booleans(),
)
def test_runs_cover_all_queries_by_the_rule(seen: list[list[int]], alone: bool) -> None:
    n = np.array(seen, int).reshape(len(seen), 6)
    end = 0
    for run in runs(n, alone):
        assert run.first == end
        end = run.end
        for l in range(run.first, run.end):
            back = 0 if run.alike else run.end - 1 - l
            np.testing.assert_array_equal(n[:, l], np.maximum(run.lengths - back, 0))
        assert not (alone and run.alike and run.end - run.first > 1)
    assert end == 6


def test_few_runs() -> None:
    def count(*seen: int) -> int:
        return len(runs(np.array([seen]), False))

    assert count(5, 6, 7, 8) == 1
    assert count(0, 0, 1, 2) == 1
    assert count(5, 5, 5, 5) == 1
    assert count(3, 4, 4, 4, 9) == 3
    assert len(runs(np.array([[5, 5, 5]]), True)) == 3


K = normal(2, 100, 64)
CODES = encode(K)


@pytest.mark.parametrize(
    ("at", "kind", "told"),
    [
        ("causal", ValueError, "positions='causal'; expected 'all', or integers"),
        (3, ValueError, r"positions is int64 \(\); expected \(2,\) or \(1, 2\)"),
        ([1, 2, 3], ValueError, r"positions is int64 \(3,\); expected \(2,\) or \(1, 2\)"),
        ([1.0, 2.0], TypeError, "positions is float64 .*; expected integers"),
        ([3, 100], ValueError, "positions hold 100 for query 1 of sequence 0; expected -1 to 99"),
        ([-2, 3], ValueError, "positions hold -2 for query 0 of sequence 0; expected -1 to 99"),
        (
            np.array([3, 2**64 - 1], np.uint64),
            ValueError,
            "positions hold 18446744073709551615 for",
        ),
        ([[1, 2], [3]], ValueError, r"positions=\[\[1, 2\], \[3\]\]; expected .* of equal lengths"),
        (object(), TypeError, "positions=<object object .*; expected an integer or an array of"),
    ],
)
@pytest.mark.parametrize("name", ["select_topk", "attend", "decode_attention"])
def test_errors(name: str, at: Any, kind: type[Exception], told: str) -> None:
    cache = KVCache()
    cache.append(K, K)
    call = {
        "select_topk": lambda: select_topk(K[:, :2], CODES, 8, positions=at),
        "attend": lambda: attend(K[:, :2], K, K, None, positions=at),
        "decode_attention": lambda: decode_attention(K[:, :2], cache, 8, positions=at),
    }[name]
    with pytest.raises(kind, match=told):
        call()


def test_positions_exclude_indices_and_windows() -> None:
    indices = select_topk(K[:, :2], CODES, 8)
    with pytest.raises(ValueError, match="positions='all' with indices; expected positions=None"):
        attend(K[:, :2], K, K, indices, positions="all")
    cache = KVCache(windows=[20])
    cache.append(K, K)
    with pytest.raises(ValueError, match="positions='all' for a layer with a window of 20 tokens"):
        decode_attention(K[:, :2], cache, None, positions="all")
