"""KeyCodes and calibrate: codes follow the keys, however these arrive.

`place` puts the arrays on the CPU or on the GPU, and the codes are there too.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from oracles import assert_same_bits

from adamas_core import KVCache, Selection, calibrate, decode_attention, encode
from adamas_core.codes import KeyCodes
from adamas_core.dispatch import on_host
from adamas_core.reference.layout import Centers
from adamas_core.reference.quantize import from_planes

Place = Callable[[NDArray[Any]], Any]


def normal(*shape: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32) + np.float32(1)


def same_codes(got: KeyCodes, expected: KeyCodes) -> None:
    """Equal for every token; the slots after the last token may differ."""
    assert got.shape == expected.shape
    assert got.centers is not None
    assert expected.centers is not None
    S = got.tokens
    for x, y in zip(of_tokens(got), of_tokens(expected), strict=True):
        assert_same_bits(x, y)
    means, others = (on_host(codes.centers.means) for codes in (got, expected))
    assert_same_bits(means, others)
    keys, other = (on_host(codes.centers.open_tile)[:, :, : S % 64] for codes in (got, expected))
    assert_same_bits(keys, other)


def of_tokens(codes: KeyCodes) -> tuple[NDArray[np.uint64], NDArray[np.uint8]]:
    """Rows of codes (B, H_kv, S, 2P) and scales (B, H_kv, S)."""
    assert codes.centers is not None
    B, H_kv, S, _ = codes.shape
    rows = from_planes(on_host(codes.planes))[:, :, :S]
    return rows, on_host(codes.centers.scales).reshape(B, H_kv, -1)[:, :, :S]


def test_centered_codes_of_a_cache(place: Place, tmp_path: Path) -> None:
    k, v, q = normal(2, 300, 48), normal(2, 300, 48, seed=1), normal(4, 1, 48, seed=2)
    cache = KVCache(selection=Selection(tail=0))
    done = 0
    for n in (1, 62, 1, 100, 64, 72):
        cache.append(place(k[:, done : done + n]), place(v[:, done : done + n]))
        done += n
    codes = cache[0].codes
    assert codes is not None
    assert "centered" in repr(codes)
    same_codes(codes, encode(place(k)))
    assert codes.nbytes == codes.planes.nbytes + 2 * 5 * (64 * 2 + 64) + 2 * 64 * 64 * 4
    out = on_host(decode_attention(place(q), cache, 20))
    exact = on_host(decode_attention(place(q), cache, None))
    assert abs(out - exact).max() > 1e-3
    cache.save(tmp_path / "a.kv")
    back = KVCache.load(tmp_path / "a.kv", backend=cache.backend)
    assert back.centered
    more = normal(2, 50, 48, seed=3)
    for held in cache, back:
        held.append(place(more), place(more))
    assert back[0].codes is not None
    same_codes(back[0].codes, codes)
    assert_same_bits(
        on_host(decode_attention(place(q), back, 20)),
        on_host(decode_attention(place(q), cache, 20)),
    )


@pytest.mark.parametrize("tokens", [300, 280, 256, 255, 200, 128, 65, 64, 1, 0])
def test_truncate_then_append(place: Place, tokens: int) -> None:
    k, other = normal(2, 300, 64), normal(2, 90, 64, seed=1)
    cache = KVCache()
    cache.append(place(k), place(k))
    cache.truncate(tokens)
    whole = k[:, :tokens]
    for x in (other[:, :1], other[:, 1:]):
        cache.append(place(x), place(x))
        whole = np.concatenate([whole, x], axis=1)
        assert cache[0].codes is not None
        same_codes(cache[0].codes, encode(place(whole)))


def test_ragged_centered_codes(place: Place) -> None:
    cache, own = KVCache(), [KVCache() for _ in range(3)]
    for i, count in enumerate([[70, 200, 1], [0, 50, 3], [1, 1, 1], [60, 3, 64]]):
        k = normal(3, 2, max(count), 32, seed=i)
        cache.append(place(k), place(k), count=np.array(count))
        for b, n in enumerate(count):
            own[b].append(place(k[b, :, :n]), place(k[b, :, :n]))
    for tokens in (1000, 192, 100):
        if tokens < 1000:
            for held in (cache, *own):
                held.truncate(min(tokens, held[0].tokens))
        q = normal(3, 4, 1, 32, seed=7)
        out = on_host(decode_attention(place(q), cache, 12))
        for b in range(3):
            alone = on_host(decode_attention(place(q[b]), own[b], 12))
            np.testing.assert_allclose(out[b], alone, atol=2e-6)


def test_read_only_codes_are_copied_before_they_grow() -> None:
    k = normal(1, 2, 70, 16)
    codes = encode(k)
    assert codes.centers is not None
    for x in (codes.planes, *codes.centers):
        x.setflags(write=False)
    frozen = KeyCodes(
        codes.planes, 70, codes.thresholds, 16, centers=Centers(*(x for x in codes.centers))
    )
    frozen.append(k)
    same_codes(frozen, encode(np.concatenate([k, k], axis=2)))


def test_calibrate_is_the_rms_or_the_quartiles(place: Place) -> None:
    k = (normal(2, 3, 5000, 48, seed=1) - 1) * np.array([1, 2, 3], np.float32)[:, None, None]
    rms = np.sqrt((k.astype(np.float64) ** 2).sum(axis=(0, 2, 3)) / (2 * 5000 * 64))
    t = on_host(calibrate(place(k)))
    np.testing.assert_allclose(t[:, 2], 0.996 * rms, rtol=1e-6)
    np.testing.assert_array_equal(t[:, 0], -t[:, 2])
    assert not t[:, 1].any()
    quartiles = on_host(calibrate(place(k), "quartiles"))
    np.testing.assert_allclose(quartiles[:, 2], 0.6745 * rms, rtol=0.02)


def test_the_record_is_what_backends_read() -> None:
    codes = encode(normal(2, 70, 16))
    record = codes.record
    assert record.length == codes.length == 70
    assert np.shares_memory(record.planes, codes.planes)
    assert record.thresholds is codes.thresholds
    assert record.centers is not None
    assert codes.centers is not None
    assert np.shares_memory(record.centers.means, codes.centers.means)
    assert encode(normal(2, 70, 16), centered=False).record.centers is None


def test_codes_are_centered_unless_thresholds_or_the_name_ask_for_plain_ones() -> None:
    k = normal(1, 2, 200, 16)
    given = encode(k).thresholds
    assert given.tolist() == [[np.float32(-0.996), 0, np.float32(0.996)]] * 2
    forms: dict[str, dict[str, Any]] = {"default": {}, "asked": {"centered": True}}
    for options in forms.values():
        same_codes(encode(k, **options), encode(k, centered=True))
        assert encode(k, **options).centered
    plain = [encode(k, centered=False), encode(k, calibrate(k)), encode(k, calibrate(k), None)]
    for codes in plain:
        assert not codes.centered
        assert codes.centers is None
        assert_same_bits(codes.planes, plain[0].planes)
        assert_same_bits(codes.thresholds, calibrate(k))


def test_empty_codes_are_centered_unless_thresholds_are_given() -> None:
    k = normal(2, 3, 150, 48)
    codes = KeyCodes.empty(2, 3, 48, capacity=70)
    codes.append(k[:, :, :100])
    codes.append(k[:, :, 100:])
    same_codes(codes, encode(k))
    plain = KeyCodes.empty(2, 3, 48, [-1, 0, 1])
    plain.append(k)
    assert not plain.centered
    assert_same_bits(plain.planes, encode(k, [-1, 0, 1]).planes)
