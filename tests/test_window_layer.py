"""Layers with a window: attention to the last tokens alone, in bounded memory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from oracles import exact_attention

from adamas_core import KVCache, decode_attention
from adamas_core.dispatch import on_host
from adamas_core.window_layer import ROLLBACK

Place = Callable[[NDArray[Any]], Any]


def normal(*shape: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def windowed(
    q: NDArray[np.float32], k: NDArray[np.float32], v: NDArray[np.float32], window: int
) -> NDArray[np.float64]:
    """Attention in float64: the queries are the last tokens, and each sees its window."""
    L, S = q.shape[2], k.shape[2]
    own = np.arange(S - L, S)[:, None]
    token = own - np.arange(window)
    indices = np.broadcast_to(np.where(token < 0, -1, token), (*q.shape[:3], window))
    return exact_attention(q, k, v, indices.astype(np.int32))[0]


@pytest.mark.parametrize("window", [1, 7, 64, 500])
@pytest.mark.parametrize("chunks", [[300, 1, 1, 40, 1], [1, 2, 3, 200, 200], [5, 64, 64, 64]])
def test_attention_sees_the_window(place: Place, window: int, chunks: list[int]) -> None:
    """Chunks of a prompt may be longer than the window."""
    S = sum(chunks)
    k, v, q = normal(1, 2, S, 32), normal(1, 2, S, 32, seed=1), normal(1, 4, S, 32, seed=2)
    cache, done = KVCache(windows=[window]), 0
    for n in chunks:
        part = slice(done, done + n)
        cache.append(place(k[:, :, part]), place(v[:, :, part]))
        done += n
        out = decode_attention(place(q[:, :, part]), cache, 5)
        expected = windowed(q[:, :, part], k[:, :, :done], v[:, :, :done], window)
        np.testing.assert_allclose(on_host(out), expected, atol=2e-5)


def test_a_ragged_batch(place: Place) -> None:
    k, v, q = normal(3, 2, 90, 16), normal(3, 2, 90, 16, seed=1), normal(3, 2, 1, 16, seed=2)
    cache = KVCache(windows=[20])
    held: list[list[NDArray[np.float32]]] = [[], [], []]
    for _ in range(6):
        count = np.array([90, 1, 0])
        cache.append(place(k), place(v), count=count)
        for b, n in enumerate(count):
            held[b].append(k[b, :, :n])
    out = on_host(decode_attention(place(q), cache, None))
    for b in (0, 1):
        keys = np.concatenate(held[b], axis=1)[None]
        values = np.concatenate([v[b, :, :n] for n in [x.shape[1] for x in held[b]]], axis=1)[None]
        expected = windowed(q[b : b + 1], keys, values, 20)
        np.testing.assert_allclose(out[b : b + 1], expected, atol=2e-5)
    assert not out[2].any()  # an empty sequence
    assert cache[0].length.tolist() == [540, 6, 0]  # type: ignore[union-attr]
    assert cache[0].k.shape == (3, 2, 20, 16)


def test_memory_is_bounded() -> None:
    cache, token = KVCache(windows=[50]), normal(1, 10, 8)
    for _ in range(1000):
        cache.append(token, token)
        assert cache.nbytes <= 2 * 4 * 8 * (1.5 * (50 + ROLLBACK) + 10)
    assert cache[0].tokens == 10_000
    assert cache[0].codes is None
    assert cache[0].dense
    assert (cache[0].window, cache.windows) == (50, (50,))


@pytest.mark.parametrize("back", [1, 60, ROLLBACK])
def test_the_newest_tokens_can_be_dropped(place: Place, back: int) -> None:
    k, q = normal(1, 2, 1000, 16), normal(1, 2, 1, 16, seed=2)
    cache = KVCache(windows=[30])
    for i in range(0, 1000, 10):
        cache.append(place(k[:, :, i : i + 10]), place(k[:, :, i : i + 10]))
    cache.truncate(1000 - back)
    kept = k[:, :, : 1000 - back]
    np.testing.assert_array_equal(on_host(cache[0].k), kept[:, :, -30:])
    out = on_host(decode_attention(place(q), cache, 4))
    np.testing.assert_allclose(out, windowed(q, kept, kept, 30), atol=2e-5)


def test_going_too_far_back_changes_no_layer() -> None:
    k = normal(1, 2, 1000, 16)
    cache = KVCache(2, windows=[None, 30])
    for layer in range(2):
        cache.append(k[:, :, :500], k[:, :, :500], layer)
        cache.append(k[:, :, 500:], k[:, :, 500:], layer)
    earliest = cache._layers[1].earliest()[0]
    told = f"sequence 0; layer 1 has a window of 30 .* expected 0, or {earliest} to 1000"
    with pytest.raises(ValueError, match=told):
        cache.truncate(int(earliest) - 1)
    assert [cache[i].tokens for i in range(2)] == [1000, 1000]
    cache.truncate(int(earliest))
    assert [cache[i].tokens for i in range(2)] == [earliest, earliest]
    cache.truncate(0)
    assert [cache[i].shape for i in range(2)] == [None, None]


def test_save_and_load(tmp_path: Path) -> None:
    k, q = normal(2, 2, 400, 16), normal(2, 2, 1, 16, seed=2)
    cache = KVCache(2, windows=[30, None])
    for i in range(0, 400, 50):
        part = k[:, :, i : i + 50]
        for layer in range(2):
            cache.append(part, part, layer, count=np.array([50, 20]))
    cache.save(tmp_path / "a.kv")
    back = KVCache.load(tmp_path / "a.kv")
    assert back.windows == (30, None)
    assert (tmp_path / "a.kv").stat().st_size < 2 * 2 * 2 * 400 * 16 * 4 * 2
    for held in cache, back:
        held.truncate([400 - 100, 160 - 100])
        held.append(k[:, :, :3], k[:, :, :3], 0)
    np.testing.assert_array_equal(back[0].k, cache[0].k)
    np.testing.assert_array_equal(decode_attention(q, back, 4), decode_attention(q, cache, 4))


@pytest.mark.parametrize(
    ("windows", "error", "told"),
    [
        ([1, 2], ValueError, "windows has 2 items; expected 1, or none"),
        ([0], ValueError, "an item of windows=0; expected at least 1"),
        ([2.0], TypeError, "an item of windows=2.0; expected an integer"),
        (5, TypeError, "windows=5; expected a list"),
    ],
)
def test_wrong_windows(windows: Any, error: type[Exception], told: str) -> None:
    with pytest.raises(error, match=told):
        KVCache(windows=windows)
