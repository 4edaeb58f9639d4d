"""The file of a cache: it is whole or refused, and a loaded cache goes on as the saved one.

`place` puts the arrays on the CPU or on the GPU, and the cache is there too.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from oracles import assert_same_bits

from adamas_core import KVCache, Selection, cache_file, calibrate, decode_attention
from adamas_core.dispatch import on_host

Place = Callable[[NDArray[Any]], Any]


def normal(*shape: int, dtype: Any = np.float32, seed: int = 0) -> NDArray[Any]:
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def same(got: Any, expected: Any) -> None:
    """Arrays of one library with the same bits."""
    assert type(got) is type(expected)
    assert_same_bits(on_host(got), on_host(expected))


def saved(path: Path, place: Place = np.asarray, **options: Any) -> KVCache:
    selection = Selection(sinks=1, recent=2, query_bits=3)
    cache = KVCache(3, selection, dense_layers=[1], **options)
    for layer in (0, 1):
        k = place(normal(2, 2, 150, 48, dtype=ml_dtypes.bfloat16, seed=layer))
        cache.append(k, k, layer)
    cache.save(path)
    return cache


@pytest.mark.parametrize("options", [{}, {"thresholds": [-1, 0, 1]}, {"centered": False}], ids=str)
def test_save_and_load(place: Place, tmp_path: Path, options: dict[str, Any]) -> None:
    path = tmp_path / "chat.kv"
    cache = saved(path, place, **options)
    back = KVCache.load(path, cache.backend)
    names = ["selection", "centered", "dense_layers", "backend"]
    assert [getattr(back, n) for n in names] == [getattr(cache, n) for n in names]
    q = place(normal(2, 4, 1, 48, seed=5))
    new = place(normal(2, 2, 1, 48, dtype=ml_dtypes.bfloat16, seed=6))
    for layer in (0, 1):
        assert back[layer].k.dtype == ml_dtypes.bfloat16
        for c in (cache, back):  # a loaded cache goes on growing as the first one does
            c.append(new, new, layer)
        same(decode_attention(q, back, 16, layer), decode_attention(q, cache, 16, layer))
    assert back[2].shape is None
    same(back[0].codes.planes, cache[0].codes.planes)
    assert list(tmp_path.iterdir()) == [path]


def test_the_file_is_the_same_wherever_the_cache_lay(place: Place, tmp_path: Path) -> None:
    saved(tmp_path / "here")
    saved(tmp_path / "there", place)
    assert (tmp_path / "there").read_bytes() == (tmp_path / "here").read_bytes()


def test_a_first_estimate_stays_one_through_the_file(tmp_path: Path) -> None:
    k = normal(1, 200, 64) * np.linspace(1, 3, 200, dtype=np.float32)[:, None]
    cache = KVCache(centered=False)
    cache.append(k[:, :100], k[:, :100])
    cache.save(tmp_path / "a")
    back = KVCache.load(tmp_path / "a")
    back.append(k[:, 100:], k[:, 100:])
    np.testing.assert_array_equal(back[0].codes.thresholds, calibrate(k))


@settings(max_examples=100)
@given(data=st.data())
def test_a_damaged_file_is_refused(data: st.DataObject, tmp_path_factory: Any) -> None:
    path = tmp_path_factory.mktemp("kv") / "chat.kv"
    saved(path)
    whole = path.read_bytes()
    if data.draw(st.booleans()):
        damaged = whole[: data.draw(st.integers(0, len(whole) - 1))]
    else:
        at = data.draw(st.integers(0, len(whole) - 1))
        bit = 1 << data.draw(st.integers(0, 7))
        damaged = whole[:at] + bytes([whole[at] ^ bit]) + whole[at + 1 :]
    path.write_bytes(damaged)
    with pytest.raises(ValueError, match=r"chat\.kv (is not a KVCache file|is cut|has version)"):
        KVCache.load(path)


def test_a_failed_save_leaves_the_old_file(tmp_path: Path, monkeypatch: Any) -> None:
    path = tmp_path / "chat.kv"
    cache = saved(path)
    whole = path.read_bytes()

    def full(fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        cache.save(path)
    assert path.read_bytes() == whole
    assert list(tmp_path.iterdir()) == [path]


def test_no_such_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        KVCache.load(tmp_path / "none")


def test_header_and_arrays_come_back(tmp_path: Path) -> None:
    """Without a cache: any header, arrays of any shape, views too."""
    arrays = {
        "a": np.arange(24, dtype=np.uint64).reshape(2, 3, 4)[:, ::2],
        "empty": np.zeros((0, 3), np.float16),
        "b": normal(5, dtype=ml_dtypes.bfloat16),
    }
    cache_file.write(tmp_path / "x", {"name": "é", "n": 3}, arrays)
    header, back = cache_file.read(tmp_path / "x")
    assert header == {"name": "é", "n": 3}
    assert list(back) == list(arrays)
    for name, x in arrays.items():
        assert_same_bits(back[name], np.ascontiguousarray(x))
    assert (tmp_path / "x").stat().st_size % 64 == 32  # aligned arrays, then the digest


@pytest.mark.parametrize(
    ("header", "told"),
    [
        ({"hello": 1}, r"KeyError\('layers'\)"),
        ({"layers": 1, "selection": {"later": 3}}, "unexpected keyword argument 'later'"),
    ],
)
def test_a_header_of_another_kind(tmp_path: Path, header: dict[str, Any], told: str) -> None:
    cache_file.write(tmp_path / "x", header, {})
    with pytest.raises(
        ValueError, match=rf"x has a header that this release cannot read: .*{told}"
    ):
        KVCache.load(tmp_path / "x")
