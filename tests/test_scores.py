"""Scores of chosen tokens are the reference's numbers, and shards choose as one sequence does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from oracles import assert_same_bits, query_planes
from strategies import cases, metrics, selections

from adamas_core import KeyCodes, Selection, encode, merge_topk, reference, select_topk
from adamas_core.dispatch import on_host
from adamas_core.reference.estimate import estimate
from adamas_core.reference.rerank import inner_products

Place = Callable[[NDArray[Any]], Any]


def all_scores(case: Any, selection: Selection) -> NDArray[Any]:
    """The score (B, H, L, S) of every token, by the reference; NaN as promised."""
    query = query_planes(case, selection)
    d = reference.score(query, case.codes.planes, case.codes.length, selection.metric)
    if selection.refine:
        G = case.q.shape[1] // case.k.shape[1]
        found = np.empty(d.shape, np.float32)
        for row in np.ndindex(d.shape[:3]):
            b, h, _ = row
            found[row] = inner_products(case.q[row], case.k[b, h // G, : d.shape[3]])
    elif case.codes.centers is None:
        return d
    else:
        found = estimate(reference.hadamard(case.q), query, d, case.codes)
    return np.where(np.isnan(found), np.float32(-np.inf), found) + np.float32(0)


def of_chosen(scores: NDArray[Any], indices: NDArray[np.int32]) -> NDArray[Any]:
    none = np.uint16(65535) if scores.dtype == np.uint16 else np.float32(-np.inf)
    found = np.take_along_axis(scores, np.maximum(indices, 0).astype(np.int64), axis=-1)
    return np.where(indices < 0, none, found)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@settings(max_examples=150)
@given(centered=st.booleans(), form=metrics, refine=st.sampled_from([0, 0, 2]), data=st.data())
def test_bits(
    backend: str, centered: bool, form: Selection, refine: int, data: st.DataObject
) -> None:
    case = data.draw(cases(centered=centered))
    if not case.tokens:
        return
    options: dict[str, Any] = {"query_bits": form.query_bits}
    if not centered:
        options["metric"] = form.metric
    K, selection = data.draw(selections(case.tokens, refine=refine, **options))
    if case.tokens < K:
        K, selection = case.tokens, Selection(refine=refine, **options)
    codes = KeyCodes.from_arrays(case.codes, case.q.shape[3], backend)
    k = case.k if refine else None
    indices, scores = select_topk(case.q, codes, K, selection, k, return_scores=True)
    assert_same_bits(indices, select_topk(case.q, codes, K, selection, k))
    assert_same_bits(scores, of_chosen(all_scores(case, selection), indices))


@pytest.mark.parametrize(
    "options",
    [{}, {"refine": 2}, {"centered": False}, {"centered": False, "metric": "manhattan"}],
    ids=["centered", "refine", "plain", "manhattan"],
)
def test_on_each_device(place: Place, options: dict[str, Any]) -> None:
    q, k = normal(2, 4, 3, 80), normal(2, 2, 200, 80, seed=1)
    own = dict(options)
    centered = own.pop("centered", True)
    found = []
    for put in (np.asarray, place):
        keys = put(k)
        codes = encode(keys, [-1, 0, 1] if not centered else None, np.array([200, 2]))
        more = {**own, "k": keys} if "refine" in own else own
        found.append(select_topk(put(q), codes, 9, return_scores=True, **more))
    for got, expected in zip(found[1], found[0], strict=True):
        assert_same_bits(on_host(got), expected)
    indices, scores = found[0]
    assert scores.dtype == (np.float32 if centered else np.uint16)
    assert (indices[1] < 0).any()


def normal(*shape: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def shards(codes: KeyCodes, cuts: list[int]) -> list[tuple[int, KeyCodes]]:
    """The codes of the tiles between cuts, which are views of the whole's."""
    record, D, found = codes.arrays(), codes.head_dim, []
    T = record.planes.shape[3]
    for first, end in zip([0, *cuts], [*cuts, T], strict=True):
        n = min(64 * end, codes.tokens) - 64 * first
        centers = record.centers and record.centers._replace(
            means=record.centers.means[:, :, first:end],
            scales=record.centers.scales[:, :, first:end],
        )
        part = record._replace(
            planes=record.planes[:, :, :, first:end], length=n, centers=centers, fine=None
        )
        found.append((64 * first, KeyCodes.from_arrays(part, D)))
    return found


@settings(max_examples=150)
@given(
    S=st.integers(65, 500),
    K=st.integers(1, 60),
    L=st.sampled_from([1, 1, 3]),
    kind=st.sampled_from(["centered", "plain", "manhattan", "ties"]),
    seed=st.integers(0, 2**32),
    data=st.data(),
)
def test_shards_choose_as_the_whole(
    S: int, K: int, L: int, kind: str, seed: int, data: st.DataObject
) -> None:
    q, k = normal(2, 4, L, 32, seed=seed), normal(2, 2, S, 32, seed=seed + 1)
    if kind == "ties":
        k = np.sign(k)
        k[..., 2:] = 1
    codes = encode(k, centered=kind == "centered")
    T = -(-S // 64)
    cuts = sorted(data.draw(st.sets(st.integers(1, T - 1), max_size=3)))
    if (S - 64 * (cuts[-1] if cuts else 0)) < L:
        return
    options = {"metric": "manhattan"} if kind == "manhattan" else {}
    found = []
    parts = shards(codes, cuts)
    for first, part in parts:
        at = None if first == parts[-1][0] else "all"
        own = min(K, part.tokens)
        idx, scores = select_topk(q, part, own, positions=at, return_scores=True, **options)
        found.append((np.where(idx < 0, idx, idx + np.int32(first)), scores))
    order = data.draw(st.permutations(found))
    indices, scores = merge_topk(*zip(*order, strict=True), budget=min(K, S))
    expected = select_topk(q, codes, min(K, S), return_scores=True, **options)
    assert_same_bits(indices, expected[0])
    assert_same_bits(scores, expected[1])


def test_the_most_recent_of_equals_wins_and_missing_places_are_last() -> None:
    i = [np.array([3, 9], np.int32), np.array([20, -1, -1], np.int32)]
    d = [np.array([5, 7], np.uint16), np.array([5, 65535, 65535], np.uint16)]
    for budget, indices, scores in (
        (1, [20], [5]),
        (2, [3, 20], [5, 5]),
        (3, [3, 9, 20], [5, 7, 5]),
        (7, [3, 9, 20, -1, -1, -1, -1], [5, 7, 5, 65535, 65535, 65535, 65535]),
    ):
        got = merge_topk(i, d, budget)
        assert_same_bits(got[0], np.array(indices, np.int32))
        assert_same_bits(got[1], np.array(scores, np.uint16))


def test_a_token_of_minus_infinity_is_a_candidate() -> None:
    i = [np.array([[4, -1]], np.int32), np.array([[2, 8]], np.int32)]
    s = [np.array([[-np.inf, 5]], np.float32), np.array([[-np.inf, -3]], np.float32)]
    got = merge_topk(i, s, 2)
    assert_same_bits(got[0], np.array([[4, 8]], np.int32))
    assert_same_bits(got[1], np.array([[-np.inf, -3]], np.float32))


def test_candidates_on_each_device(place: Place) -> None:
    q, k = normal(1, 2, 1, 32), normal(1, 2, 256, 32, seed=1)
    found = []
    for first in (0, 128):
        codes = encode(place(k[:, :, first : first + 128]))
        idx, scores = select_topk(place(q), codes, 8, positions="all", return_scores=True)
        found.append((idx + np.int32(first), scores))
    got = merge_topk(*zip(*found, strict=True), budget=8)
    assert type(got[0]) is type(found[0][0])
    expected = select_topk(q, encode(k), 8, return_scores=True)
    for x, y in zip(got, expected, strict=True):
        assert_same_bits(on_host(x), y)


I = np.zeros((2, 3), np.int32)
X = np.zeros((2, 3), np.float32)


@pytest.mark.parametrize(
    ("call", "kind", "told"),
    [
        (lambda: merge_topk([], [], 3), ValueError, "0 indices and 0 scores; expected equal numb"),
        (lambda: merge_topk([I], [X, X], 3), ValueError, "1 indices and 2 scores"),
        (lambda: merge_topk([I], [X], 0), ValueError, "budget=0; expected at least 1"),
        (lambda: merge_topk([I], [X], 1.5), TypeError, "budget=1.5; expected an integer"),
        (lambda: merge_topk([X], [X], 3), TypeError, "indices is float32 .*expected dtype int32"),
        (lambda: merge_topk([I], [I], 3), TypeError, "scores is int32 .*expected uint16, float32"),
        (
            lambda: merge_topk([I, I], [X, X.astype(np.uint16)], 3),
            TypeError,
            "scores is uint16 .*expected dtype float32",
        ),
        (
            lambda: merge_topk([I, I[:1]], [X, X[:1]], 3),
            ValueError,
            "expected one shape, .2, K",
        ),
        (lambda: merge_topk([I], [X[:, :2]], 3), ValueError, "expected one shape, .2, K"),
        (
            lambda: select_topk(X, encode(X[:, None]), 1, group=True, return_scores=True),
            ValueError,
            "return_scores=True with group=True; expected group=False, because a group chooses by",
        ),
        (
            lambda: select_topk(X, encode(X[:, None]), 1, return_scores=1),
            TypeError,
            "return_scores=1; expected True or False",
        ),
    ],
)
def test_errors(call: Callable[[], Any], kind: type[Exception], told: str) -> None:
    with pytest.raises(kind, match=told):
        call()
