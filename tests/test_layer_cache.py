"""A layer that keeps all tokens: thresholds follow the tokens that are there, and only these."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from numpy.typing import NDArray

from adamas_core import KVCache, calibrate, code_store
from adamas_core.dispatch import on_host

Place = Callable[[NDArray[Any]], Any]


def growing(B: int, S: int) -> NDArray[np.float32]:
    """Keys (B, 2, S, 64) whose size grows, so that every sample gives other thresholds."""
    k = np.random.default_rng(B * S).standard_normal((B, 2, S, 64)).astype(np.float32)
    return k * np.linspace(1, 3, B * S, dtype=np.float32).reshape(B, 1, S, 1)


def same_codes(a: KVCache, b: KVCache) -> None:
    x, y = a[0].codes, b[0].codes
    assert x is not None
    assert y is not None
    assert_array_equal(on_host(x.thresholds), on_host(y.thresholds))
    assert_array_equal(on_host(x.planes), on_host(y.planes))


@pytest.mark.parametrize("first", [50, 100, 200])
@pytest.mark.parametrize("kept", [10, 60, 127, 128, 150, 199, 240])
def test_thresholds_after_a_cut_are_those_of_the_kept_tokens(
    place: Place, first: int, kept: int
) -> None:
    """A fresh cache gets the same appends, each cut to the tokens that are kept."""
    k = place(growing(1, 300))
    cache, fresh = KVCache(centered=False), KVCache(centered=False)
    done = 0
    for n in (first, 20, 80, 10):
        end = min(done + n, 300)
        cache.append(k[:, :, done:end], k[:, :, done:end])
        if done < kept:
            fresh.append(k[:, :, done : min(end, kept)], k[:, :, done : min(end, kept)])
        done = end
    cache.truncate(min(kept, done))
    same_codes(cache, fresh)
    for x in (k[:, :, :70], k[:, :, 5:6]):
        cache.append(x, x)
        fresh.append(x, x)
    same_codes(cache, fresh)


def test_a_long_first_append_is_calibrated_from_its_first_1024_tokens() -> None:
    k = growing(1, 3000)
    cache = KVCache(centered=False)
    cache.append(k, k)
    before = cache[0].codes.thresholds  # type: ignore[union-attr]
    cache.truncate(1024)
    assert_array_equal(cache[0].codes.thresholds, before)  # type: ignore[union-attr]
    cache.truncate(1000)
    assert_array_equal(cache[0].codes.thresholds, calibrate(k[:, :, :1000]))  # type: ignore[union-attr]


def test_thresholds_stay_while_the_sequences_of_the_sample_stay() -> None:
    k = growing(3, 100)
    cache = KVCache(centered=False)
    cache.append(k, k)
    before = cache[0].codes.thresholds  # type: ignore[union-attr]
    cache.reorder([2, 0, 1, 0, -1])
    assert_array_equal(cache[0].codes.thresholds, before)  # type: ignore[union-attr]
    cache.remove([0, 3])  # sequence 2, and the copy of 0
    fresh = KVCache(centered=False)
    fresh.append(k[:2], k[:2])
    assert_array_equal(cache[0].codes.thresholds, fresh[0].codes.thresholds)  # type: ignore[union-attr]
    assert_array_equal(cache[0].codes.planes[:, :2], fresh[0].codes.planes)  # type: ignore[union-attr]


def test_where_no_token_of_the_sample_is_kept_the_rest_counts_as_one_append() -> None:
    k = growing(2, 200)
    cache = KVCache(centered=False)
    cache.append(k, k, count=np.array([200, 0]))
    cache.append(k, k, count=np.array([0, 150]))
    cache.truncate([0, 150])
    thresholds = cache[0].codes.thresholds  # type: ignore[union-attr]
    assert_array_equal(thresholds, calibrate(k[1:, :, :150]))


def test_slots_of_no_token_are_zero(place: Place) -> None:
    k = place(growing(2, 30))
    cache = KVCache()
    cache.append(k, k, count=np.array([30, 12]))
    cache.truncate([20, 5])
    for x in (cache[0].k, cache[0].v):
        assert not on_host(x)[1, :, 5:].any()
        assert_array_equal(on_host(x)[1, :, :5], on_host(k)[1, :, :5])


def test_growth_shows_nowhere_but_in_memory() -> None:
    """A much larger draft that was rejected leaves the bytes in use as they were."""
    k = growing(1, 3000)
    cache = KVCache()
    cache.append(k[:, :, :100], k[:, :, :100])
    before = cache.nbytes
    cache.append(k, k)
    cache.truncate(100)
    assert cache.nbytes == before


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("options", [{}, {"thresholds": [-1, 0, 1]}, {"dense_layers": [0]}])
def test_keys_that_are_not_finite_are_refused(
    place: Place, value: float, options: dict[str, Any]
) -> None:
    k = growing(1, 200)
    cache = KVCache(**({"centered": False} | options))
    bad = k[:, :, :150].copy()
    bad[0, 1, 7, 3] = value
    for tokens in (0, 50):
        with pytest.raises(ValueError, match=r"k is float32 .*found 1 others.*\(0, 1, 7, 3\)"):
            cache.append(place(bad), place(bad))
        assert cache[0].tokens == tokens
        assert (cache[0].shape is None) == (tokens == 0)
        cache.append(place(k[:, :, :50]), place(k[:, :, :50]))


@pytest.mark.parametrize("read", ["k", "v", "save"])
def test_a_reader_in_the_middle_of_an_append_does_no_harm(
    read: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A signal handler or another thread reads while new tokens lie in free slots."""
    k, v = np.random.default_rng(0).standard_normal((2, 2, 1, 70, 16)).astype(np.float32)
    cache = KVCache()
    cache.append(k, v, count=np.array([70, 30]))
    append = code_store.append

    def interrupted(*arguments: Any) -> Any:
        if read == "save":
            cache.save(tmp_path / "cache.kv")
        else:
            getattr(cache[0], read)
        return append(*arguments)

    monkeypatch.setattr(code_store, "append", interrupted)
    cache.append(k[:, :, :4], v[:, :, :4])
    for x, new in ((cache[0].k, k), (cache[0].v, v)):
        assert_array_equal(x[0, :, 70:], new[0, :, :4])
        assert_array_equal(x[1, :, 30:34], new[1, :, :4])
        assert not x[1, :, 34:].any()


def test_dropped_tokens_are_not_shown() -> None:
    k = np.ones((2, 1, 70, 16), np.float32)
    cache = KVCache()
    cache.append(k, k)
    cache.truncate([70, 30])
    assert not cache[0].k[1, :, 30:].any()
    assert not cache[0].v[1, :, 30:].any()
