"""decode_attention over a layer: which queries it takes, and sequences without tokens."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from adamas_core import (
    KVCache,
    Selection,
    Softmax,
    attend,
    attend_tail,
    decode_attention,
    reference,
)
from adamas_core.dispatch import on_host

Place = Callable[[NDArray[Any]], Any]


def normal(*shape: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("centered", [False, True])
@pytest.mark.parametrize("budget", [16, None])
@pytest.mark.parametrize("window", [None, 40])
def test_a_sequence_without_tokens_attends_to_nothing(
    place: Place, centered: bool, budget: int | None, window: int | None
) -> None:
    k, q = normal(3, 2, 200, 32), normal(3, 4, 1, 32, seed=1)
    cache = KVCache(centered=centered, windows=[window])
    cache.append(place(k), place(k), count=np.array([200, 0, 150]))
    out, lse = decode_attention(place(q), cache, budget, return_lse=True)
    assert not on_host(out)[1].any()
    assert (on_host(lse)[1] == -np.inf).all()
    for b, n in ((0, 200), (2, 150)):
        alone = KVCache(centered=centered, windows=[window])
        alone.append(place(k[b, :, :n]), place(k[b, :, :n]))
        if centered or budget is None or window is not None:  # else thresholds differ
            expected = on_host(decode_attention(place(q[b]), alone, budget))
            np.testing.assert_allclose(on_host(out)[b], expected, atol=2e-6)


def test_queries_need_their_tokens() -> None:
    k = normal(2, 2, 50, 16)
    cache = KVCache()
    cache.append(k, k, count=np.array([3, 50]))
    with pytest.raises(ValueError, match=r"has 4 tokens and the cache \[ 3 50\]"):
        decode_attention(normal(2, 2, 4, 16), cache, 8)


def test_queries_need_their_windows() -> None:
    k = normal(1, 2, 100, 16)
    cache = KVCache(windows=[10])
    for _ in range(10):
        cache.append(k, k)
    decode_attention(normal(1, 2, 100, 16), cache, 8)
    with pytest.raises(
        ValueError, match=r"has 900 tokens; the layer has a window of .* no longer keeps"
    ):
        decode_attention(normal(1, 2, 900, 16), cache, 8)


def test_scale_reaches_the_choice_of_a_group(place: Place) -> None:
    """At another scale the heads' attention has another shape, and other tokens get the most."""
    k, q = normal(1, 2, 400, 32), normal(1, 8, 1, 32, seed=1) * np.linspace(1, 6, 8)[:, None, None]
    q = q.astype(np.float32)
    cache = KVCache(selection=Selection(group=True), thresholds=[-1, 0, 1])
    cache.append(place(k), place(k))
    outs = [on_host(decode_attention(place(q), cache, 20, scale=s)) for s in (0.01, 1.0)]
    scaled = KVCache(selection=Selection(group=True), thresholds=[-1, 0, 1])
    scaled.append(place(k), place(k))
    # The default scale with queries 4 and 1/4 times as large gives the same logits.
    for s, out in zip((0.01, 1.0), outs, strict=True):
        lse = decode_attention(place(q), scaled, 20, scale=s, return_lse=True)[1]
        factor = np.float32(s * 32**0.5)
        expected = decode_attention(place(q * factor), cache, 20, return_lse=True)
        np.testing.assert_allclose(on_host(lse), on_host(expected[1]), rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(out, on_host(expected[0]), rtol=1e-3, atol=1e-3)


def with_tail(k: NDArray[np.float32], v: NDArray[np.float32], tail: int = 30) -> KVCache:
    cache = KVCache(selection=Selection(tail=tail, sinks=2))
    cache.append(k, v)
    return cache


def test_a_tail_counts_all_tokens() -> None:
    """As attend_tail over the codes of the cache."""
    k, v, q = normal(2, 2, 300, 32), normal(2, 2, 300, 32, seed=1), normal(2, 4, 3, 32, seed=2)
    cache = with_tail(k, v)
    got = decode_attention(q, cache, 16, scale=0.3, return_lse=True)
    codes, values = cache[0].codes, cache[0].value_codes
    assert codes is not None
    assert values is not None
    expected = reference.attend_tail(
        q, k, v, codes.record, values.record, 16, cache.selection, Softmax(0.3)
    )
    for x, y in zip(got, expected, strict=True):
        np.testing.assert_allclose(x, y, atol=4e-6)
    pure = KVCache(selection=Selection(sinks=2))
    pure.append(k, v)
    assert np.abs(decode_attention(q, pure, 16, scale=0.3) - got[0]).max() > 0.1


@pytest.mark.parametrize("budget", [300, 400, None])
def test_a_budget_for_all_tokens_leaves_no_tail(budget: int | None) -> None:
    k, v, q = normal(2, 2, 300, 32), normal(2, 2, 300, 32, seed=1), normal(2, 4, 1, 32, seed=2)
    got = decode_attention(q, with_tail(k, v), budget)
    np.testing.assert_allclose(got, attend(q, k, v, None), atol=2e-6)


def test_a_tail_of_sequences_of_other_lengths() -> None:
    k, v, q = normal(3, 2, 200, 32), normal(3, 2, 200, 32, seed=1), normal(3, 4, 1, 32, seed=2)
    cache = KVCache(selection=Selection(tail=20))
    cache.append(k, v, count=np.array([200, 0, 30]))
    out, lse = decode_attention(q, cache, 12, return_lse=True)
    assert not out[1].any()
    assert (lse[1] == -np.inf).all()
    for b, n in ((0, 200), (2, 30)):
        alone = KVCache(selection=Selection(tail=20))
        alone.append(k[b, :, :n], v[b, :, :n])
        np.testing.assert_allclose(out[b], decode_attention(q[b], alone, 12), atol=4e-6)


# ---- a cap, sinks, and values of another head_dim -----------------------------------------------

CAPPED = Softmax(0.4, 3.0, np.array([0.5, -np.inf, 4, -1]))


@pytest.mark.parametrize("Dv", [1, 7, 32, 80])
@pytest.mark.parametrize("ragged", [False, True])
def test_each_layer_takes_a_softmax_and_other_values(Dv: int, ragged: bool) -> None:
    """Coded with a tail, coded, dense, and with a window: as `attend` over the same tokens."""
    k, v = normal(2, 2, 300, 32), normal(2, 2, 300, Dv, seed=1)
    q = normal(2, 4, 1, 32, seed=2)
    cache = KVCache(3, dense_layers=[1], windows=[None, None, 50])
    pure = KVCache(selection=Selection(tail=0))
    count = np.array([300, 170]) if ragged else None
    for layer in range(3):
        cache.append(k, v, layer, count)
    pure.append(k, v, 0, count)
    for b, n in enumerate([300, 170] if ragged else [300, 300]):
        one = q[b : b + 1], k[b : b + 1, :, :n], v[b : b + 1, :, :n]
        for layer, window in ((0, None), (1, None), (2, 50)):
            out, lse = decode_attention(q, cache, None, layer, CAPPED, True)
            assert out.shape == (2, 4, 1, Dv)
            expected, expected_lse = reference.attend(*one, None, CAPPED, True, window)
            np.testing.assert_allclose(out[b : b + 1], expected, atol=4e-6)
            np.testing.assert_allclose(lse[b : b + 1], expected_lse, atol=4e-6)
    codes = pure[0].codes
    assert codes is not None
    indices = reference.select_topk(q, codes.record, 20, pure.selection)
    out, lse = decode_attention(q, pure, 20, softmax=CAPPED, return_lse=True)
    expected, expected_lse = reference.attend(q, k, v, indices, CAPPED, True)
    np.testing.assert_allclose(out, expected, atol=4e-6)
    np.testing.assert_allclose(lse, expected_lse, atol=4e-6)
    tailed, values = cache[0].codes, cache[0].value_codes
    assert tailed is not None
    assert values is not None
    given = (q, k, v, tailed.record, values.record, 20, cache.selection, CAPPED)
    out, lse = decode_attention(q, cache, 20, softmax=CAPPED, return_lse=True)
    expected, expected_lse = reference.attend_tail(*given)
    np.testing.assert_allclose(out, expected, atol=1e-5)
    np.testing.assert_allclose(lse, expected_lse, atol=1e-5)


def test_a_sequence_without_tokens_sees_its_sinks() -> None:
    k, q = normal(2, 2, 100, 32), normal(2, 4, 1, 32, seed=1)
    cache = KVCache(3, dense_layers=[1], windows=[None, None, 50])
    for layer in range(3):
        cache.append(k, k[..., :5], layer, np.array([0, 100]))
        for budget in (8, None):
            out, lse = decode_attention(q, cache, budget, layer, CAPPED, return_lse=True)
            assert out.shape == (2, 4, 1, 5)
            assert not out[0].any()
            np.testing.assert_array_equal(lse[0, :, 0], CAPPED.sink_logits)


def test_keywords_change_the_softmax() -> None:
    k, q = normal(1, 2, 100, 32), normal(1, 4, 1, 32, seed=1)
    cache = KVCache()
    cache.append(k, k)
    given = {"scale": 0.4, "soft_cap": 3.0, "sink_logits": CAPPED.sink_logits}
    expected = decode_attention(q, cache, 8, softmax=CAPPED)
    np.testing.assert_array_equal(decode_attention(q, cache, 8, **given), expected)
    assert (decode_attention(q, cache, 8, scale=0.4) != expected).any()
    codes, values = cache[0].codes, cache[0].value_codes
    assert codes is not None
    assert values is not None
    got = attend_tail(q, k, k, codes, values, 8, **given)
    np.testing.assert_array_equal(got, expected)
    step = KVCache()
    step.append(k[:, :, :99], k[:, :, :99])
    out = step.attention(8, **given)(0, q, k[:, :, 99:], k[:, :, 99:])
    np.testing.assert_array_equal(out, expected)


def test_a_cache_with_other_values_changes_as_any_other(tmp_path: Path) -> None:
    """It is saved, cut, forked and reordered, and gives what a new cache gives."""
    k, v, q = normal(2, 2, 200, 32), normal(2, 2, 200, 70, seed=1), normal(2, 4, 1, 32, seed=2)

    def made(k: NDArray[Any], v: NDArray[Any]) -> KVCache:
        cache = KVCache(2, windows=[None, 60])
        for layer in range(2):
            cache.append(k, v, layer)
        return cache

    cache = made(k, v)
    assert cache[0].shape == (2, 2, 200, 32)
    codes, values = cache[0].codes, cache[0].value_codes
    assert codes is not None
    assert values is not None
    assert values.shape == (2, 2, 200, 70)
    assert cache[0].nbytes == k.nbytes + v.nbytes + codes.nbytes + values.nbytes
    cache.save(tmp_path / "cache")
    cache = KVCache.load(tmp_path / "cache")
    cache.append(k[:, :, :1], v[:, :, :1], 0)
    cache.append(k[:, :, :1], v[:, :, :1], 1)
    cache.truncate(150)
    cache.fork(0)
    cache.reorder([2, 1])
    expected = made(k[:, :, :150], v[:, :, :150])
    for layer in range(2):
        got = decode_attention(q, cache, 20, layer)
        assert got.shape == (2, 4, 1, 70)
        np.testing.assert_array_equal(got, decode_attention(q, expected, 20, layer))
    block = cache.attention(20)
    out = block(0, *(normal(2, n, 5, D, seed=4) for n, D in ((4, 32), (2, 32), (2, 70))))
    assert out.shape == (2, 4, 5, 70)
    with pytest.raises(ValueError, match=r"v is float32 \(2, 2, 5, 32\); expected \(2, 2, S, 70\)"):
        cache.append(k[:, :, :5], k[:, :, :5])
