"""KVCache and decode_attention: keys and values come out as they went in, codes follow the keys.

`place` puts the arrays on the CPU or on the GPU, and the cache is there too.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from oracles import assert_attention, assert_same_bits, decode_by_reference
from strategies import DTYPES, Case, cases, head_dims, seeds

from adamas_core import (
    KVCache,
    Selection,
    attend,
    calibrate,
    decode_attention,
    encode,
    select_topk,
)
from adamas_core.dispatch import on_host

RNG = np.random.default_rng
Place = Callable[[NDArray[Any]], Any]


def normal(*shape: int, dtype: Any = np.float32, seed: int = 0) -> NDArray[Any]:
    return RNG(seed).standard_normal(shape).astype(dtype)


def same(got: Any, expected: Any) -> None:
    """Arrays of one library with the same bits."""
    assert type(got) is type(expected)
    assert_same_bits(on_host(got), on_host(expected))


@settings(max_examples=100)
@given(
    chunks=st.lists(st.integers(0, 90), min_size=1, max_size=6),
    shape=st.tuples(st.integers(1, 2), st.integers(1, 3), head_dims),
    dtype=st.sampled_from(DTYPES),
    given=st.booleans(),
    capacity=st.sampled_from([0, 1, 100, 1000]),
    seed=seeds,
)
def test_appends_equal_one_encode(
    place: Place,
    chunks: list[int],
    shape: tuple[int, int, int],
    dtype: Any,
    given: bool,
    capacity: int,
    seed: int,
) -> None:
    """k, v and codes do not depend on how the tokens are divided among appends."""
    (B, H_kv, D), S = shape, sum(chunks)
    k, v = (place(normal(B, H_kv, S, D, dtype=dtype, seed=s)) for s in (seed, 0))
    cache = KVCache(thresholds=[-0.9, 0, 0.9] if given else None, centered=False, capacity=capacity)
    done = 0
    for n in chunks:
        cache.append(k[:, :, done : done + n], v[:, :, done : done + n])
        done += n
    layer = cache[0]
    assert layer.length == S
    same(layer.k, k)
    same(layer.v, v)
    if S:
        assert layer.codes is not None
        expected = encode(k, layer.codes.thresholds)
        same(layer.codes.planes, expected.planes)


def test_calibrates_again_at_128_tokens(place: Place) -> None:
    k = place(normal(1, 2, 300, 64) * np.linspace(0.5, 2, 300, dtype=np.float32)[:, None])
    cache = KVCache(centered=False)
    cache.append(k[:, :, :100], k[:, :, :100])
    first = cache[0].codes.thresholds
    same(first, calibrate(k[:, :, :100]))
    cache.append(k[:, :, 100:127], k[:, :, 100:127])
    same(cache[0].codes.thresholds, first)
    cache.append(k[:, :, 127:150], k[:, :, 127:150])
    lasting = cache[0].codes.thresholds
    same(lasting, calibrate(k[:, :, :150]))
    same(cache[0].codes.planes, encode(k[:, :, :150], lasting).planes)
    cache.append(k[:, :, 150:], k[:, :, 150:])
    same(cache[0].codes.thresholds, lasting)


def test_codes_are_centered_unless_something_asks_for_plain_ones(place: Place) -> None:
    manhattan = Selection("manhattan")
    plain = [{"centered": False}, {"thresholds": [-1, 0, 1]}, {"selection": manhattan}]
    forms: list[tuple[dict[str, Any], bool]] = [({}, True), ({"centered": True}, True)]
    k = place(normal(2, 200, 16))
    for options, centered in forms + [(options, False) for options in plain]:
        cache = KVCache(**options)
        cache.append(k, k)
        assert (cache.centered, cache[0].codes.centered) == (centered, centered)
    same(cache[0].codes.thresholds, calibrate(k))  # by the Manhattan metric, calibrated


@pytest.mark.parametrize("G", [1, 3])
@pytest.mark.parametrize("metric", ["weighted", "manhattan"])
def test_decode_is_select_then_attend(place: Place, G: int, metric: str) -> None:
    k, v = place(normal(2, 2, 400, 64)), place(normal(2, 2, 400, 64, seed=1))
    q = place(normal(2, 2 * G, 1, 64, seed=2))
    selection = Selection(metric, query_bits=3, sinks=2, recent=3, tail=0)
    cache = KVCache(1, selection)
    cache.append(k, v)
    out, lse = decode_attention(q, cache, 32, return_lse=True)
    indices = select_topk(q, cache[0].codes, 32, selection)
    assert (on_host(indices)[..., :2] == [0, 1]).all()
    assert (on_host(indices)[..., -3:] == [397, 398, 399]).all()
    expected, expected_lse = attend(q, k, v, indices, return_lse=True)
    same(out, expected)
    same(lse, expected_lse)


@given(case=cases(["normal"]), budget=st.sampled_from([1, 16, 100, None]), dense=st.booleans())
def test_decode_is_the_reference(place: Place, case: Case, budget: int | None, dense: bool) -> None:
    """Ragged or not, sparse or dense: equal to the specification, within tolerance."""
    L = case.q.shape[2]
    count = None if np.ndim(case.length) == 0 else np.maximum(case.length, L)
    if case.k.shape[2] < L:
        return
    options: dict[str, Any] = {"thresholds": [-0.9, 0, 0.9], "dense_layers": [0] if dense else []}
    cache, specified = KVCache(**options), KVCache(**options, backend="reference")
    cache.append(place(case.k), place(case.v), count=count)
    specified.append(case.k, case.v, count=count)
    exact, exact_lse = decode_by_reference(case.q.astype(np.float64), specified, budget)
    for held, q in (cache, place(case.q)), (specified, case.q):
        out, lse = decode_attention(q, held, budget, return_lse=True)
        assert_attention(on_host(out), exact, case.q.dtype)
        np.testing.assert_allclose(on_host(lse), exact_lse, rtol=2e-6, atol=4e-6)


def test_dense_where_the_budget_covers_or_the_layer_is_dense(place: Place) -> None:
    k, v = place(normal(2, 100, 64)), place(normal(2, 100, 64, seed=1))
    q = place(normal(6, 1, 64, seed=2))
    cache = KVCache(2, dense_layers=[1])
    cache.append(k, v, layer=0)
    cache.append(k, v, layer=1)
    dense = attend(q, k, v, None)
    assert cache[1].codes is None
    for budget, layer in [(None, 0), (100, 0), (1000, 0), (5, 1)]:
        same(decode_attention(q, cache, budget, layer), dense)
    assert abs(decode_attention(q, cache, 5, 0) - dense).max() > 0.01


def test_ragged_sequences_are_each_their_own(place: Place) -> None:
    counts = [np.array([70, 200, 1]), np.array([0, 50, 3]), np.array([1, 1, 1])]
    t = [-1, 0, 1]
    cache = KVCache(thresholds=t)
    own = [KVCache(thresholds=t) for _ in range(3)]
    for i, count in enumerate(counts):
        S = int(count.max())
        k, v = place(normal(3, 2, S, 32, seed=i)), place(normal(3, 2, S, 32, seed=i + 9))
        cache.append(k, v, count=count)
        for b, n in enumerate(count):
            own[b].append(k[b, :, :n], v[b, :, :n])
    assert cache[0].length.tolist() == [71, 251, 5]
    q = place(normal(3, 4, 1, 32, seed=7))
    for budget in (4, 100, None):
        out = decode_attention(q, cache, budget)
        for b in range(3):
            alone = decode_attention(q[b], own[b], budget)
            np.testing.assert_allclose(on_host(out[b]), on_host(alone), atol=2e-6)


def test_several_new_tokens_are_causal(place: Place) -> None:
    k, v = place(normal(2, 300, 64)), place(normal(2, 300, 64, seed=1))
    q = place(normal(4, 5, 64, seed=2))
    cache = KVCache(thresholds=[-1, 0, 1])
    cache.append(k, v)
    for budget in (16, None):
        together = decode_attention(q, cache, budget)
        for l in range(5):
            until = KVCache(thresholds=[-1, 0, 1])
            until.append(k[:, : 296 + l], v[:, : 296 + l])
            alone = decode_attention(q[:, l : l + 1], until, budget)
            got = on_host(together[:, l : l + 1])
            np.testing.assert_allclose(got, on_host(alone), atol=2e-6)


def test_refine_of_a_cache(place: Place, tmp_path: Path) -> None:
    k, v, q = (place(normal(n, 300, 64, seed=n)) for n in (2, 3, 6))
    q, v = q[:, :1], v[:2]
    selection = Selection(refine=2, sinks=1, recent=2, tail=0)
    cache = KVCache(1, selection, thresholds=[-1, 0, 1])
    cache.append(k, v)
    indices = select_topk(q, cache[0].codes, 9, selection, k)
    plain = select_topk(q, cache[0].codes, 9, sinks=1, recent=2)
    assert (on_host(indices) != on_host(plain)).any()
    expected = on_host(attend(q, k, v, indices))
    cache.save(tmp_path / "a.kv")
    for held in cache, KVCache.load(tmp_path / "a.kv", backend=cache.backend):
        assert held.selection == selection
        np.testing.assert_allclose(on_host(decode_attention(q, held, 9)), expected, atol=2e-6)


def test_truncate_then_append(place: Place) -> None:
    k, other = normal(2, 300, 64), normal(2, 40, 64, seed=1)
    cache = KVCache(thresholds=[-1, 0, 1])
    cache.append(place(k), place(k))
    cache.truncate(170)
    cache.append(place(other), place(other))
    whole = np.concatenate([k[:, :170], other], axis=1)
    np.testing.assert_array_equal(on_host(cache[0].k[0]), whole)
    q = normal(4, 1, 64, seed=2)
    expected = select_topk(q, encode(whole, [-1, 0, 1]), 20)
    assert_same_bits(on_host(select_topk(place(q), cache[0].codes, 20)), expected)


def test_growth_is_amortised() -> None:
    """2000 appends of one token move the buffers only a few times."""
    cache = KVCache(thresholds=[-1, 0, 1])
    keys, planes = set(), set()
    token = normal(1, 1, 8)
    for _ in range(2000):
        cache.append(token, token)
        keys.add(cache[0].k.__array_interface__["data"][0])
        planes.add(cache[0].codes.planes.__array_interface__["data"][0])
    assert len(keys) <= 13
    assert len(planes) <= 7


def test_input_is_not_changed_and_not_kept() -> None:
    k = normal(2, 10, 64)
    k.setflags(write=False)
    cache = KVCache()
    cache.append(k, k)
    assert not np.shares_memory(cache[0].k, k)


def test_a_refused_truncate_changes_no_layer(place: Place) -> None:
    k = place(normal(2, 300, 64))
    cache = KVCache(2)
    cache.append(k, k, 0)
    cache.append(k[:, :10], k[:, :10], 1)
    with pytest.raises(ValueError, match="tokens=100; expected 0 to 10, the tokens of layer 1"):
        cache.truncate(100)
    assert (cache[0].length, cache[1].length) == (300, 10)
    assert cache[0].codes.tokens == 300


def test_a_refused_first_append_settles_nothing(place: Place) -> None:
    k = place(normal(2, 5, 64))
    cache = KVCache()
    with pytest.raises(ValueError, match="count"):
        cache.append(k, k, count=np.array([6]))
    assert cache[0].shape is None
    cache.append(k[:1], k[:1])
    assert cache[0].shape == (1, 1, 5, 64)


def test_sequences_join_and_leave(place: Place) -> None:
    """A batch as a server has it: each sequence attends as if it were alone."""
    rng = RNG(0)
    cache = KVCache(centered=True)
    held: dict[int, list[NDArray[Any]]] = {b: [] for b in range(3)}

    def grow(count: list[int]) -> None:
        S = max(count)
        k = rng.standard_normal((len(count), 2, S, 32)).astype(np.float32)
        cache.append(place(k), place(k), count=np.array(count))
        for b, n in enumerate(count):
            held[b].append(k[b, :, :n])

    def check() -> None:
        q = rng.standard_normal((len(held), 4, 1, 32)).astype(np.float32)
        out = on_host(decode_attention(place(q), cache, 12))
        for b, parts in held.items():
            keys = np.concatenate([np.zeros((2, 0, 32), np.float32), *parts], axis=1)
            if keys.shape[1] == 0:
                assert not out[b].any()
                continue
            alone = KVCache(centered=True)
            alone.append(place(keys), place(keys))
            expected = on_host(decode_attention(place(q[b]), alone, 12))
            np.testing.assert_allclose(out[b], expected, atol=2e-6)

    grow([70, 200, 1])
    check()
    cache.reset(1)
    held[1] = []
    check()
    grow([1, 90, 1])  # another one joins
    check()
    cache.fork(1, copies=2)
    held |= {3: list(held[1]), 4: list(held[1])}
    check()
    cache.remove([0, 3])
    held = dict(enumerate([held[1], held[2], held[4]]))
    grow([1, 1, 1])
    check()
    cache.reorder([2, -1, 0])
    held = {0: held[2], 1: [], 2: held[0]}
    check()
    cache.truncate([20, 0, 90])
    held = {b: [np.concatenate(held[b], axis=1)[:, :n]] for b, n in ((0, 20), (2, 90))} | {1: []}
    held = dict(sorted(held.items()))
    check()
    cache.remove([0, 1, 2])
    assert cache[0].shape is None


@pytest.mark.parametrize(
    ("call", "error", "told"),
    [
        (lambda c: c.reset(2), ValueError, "sequences=2; expected 0 to 1"),
        (lambda c: c.reset(-1), ValueError, "sequences=-1; expected 0 to 1"),
        (lambda c: c.reset("a"), TypeError, "sequences='a'; expected an integer"),
        (lambda c: c.remove([0, 5]), ValueError, r"sequences=\[0, 5\]; expected 0 to 1"),
        (lambda c: c.reorder([]), (TypeError, ValueError), r"order=\[\]; expected"),
        (lambda c: c.reorder([-2]), ValueError, r"order=\[-2\]; expected -1 to 1"),
        (lambda c: c.reorder([0.5]), TypeError, r"order=\[0.5\]; expected an integer"),
        (lambda c: c.fork(2), ValueError, "sequence=2; expected 0 to 1"),
        (lambda c: c.fork(0, 0), ValueError, "copies=0; expected at least 1"),
        (lambda c: c.truncate([1, 2, 3]), ValueError, r"tokens is int64 \(3,\); expected shape"),
        (
            lambda c: c.truncate([1, 99]),
            ValueError,
            r"expected 0 to \[70 70\], the tokens of layer",
        ),
        (lambda c: c.truncate([1.5, 2]), TypeError, "expected integers"),
        (lambda c: c.truncate(1.5), TypeError, "tokens=1.5; expected an integer"),
    ],
)
def test_wrong_sequences(call: Callable[[KVCache], None], error: Any, told: str) -> None:
    k = normal(2, 1, 70, 8)
    cache = KVCache(2)
    for layer in range(2):
        cache.append(k, k, layer)
    with pytest.raises(error, match=told):
        call(cache)
    assert [cache[i].shape for i in range(2)] == [(2, 1, 70, 8)] * 2


def test_a_cache_without_tokens_takes_every_operation() -> None:
    cache = KVCache(2, windows=[None, 9])
    cache.truncate(0)
    cache.truncate([0, 0])
    cache.reset(0)
    cache.remove(0)
    cache.reorder([0])
    cache.fork(0)
    assert cache.nbytes == 0
    cache.append(normal(1, 5, 8), normal(1, 5, 8))
    with pytest.raises(ValueError, match="expected 0 to 0, the tokens of layer 1"):
        cache.truncate(3)
    with pytest.raises(ValueError, match=r"expected 0 to \[0\], the tokens of layer 1"):
        cache.truncate([3])
