"""A file with a right checksum and wrong contents is refused before anything is made of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cache_model import same_layer
from hypothesis import given
from hypothesis import strategies as st

from adamas_core import KVCache, Selection, cache_file, decode_attention

KINDS: dict[str, dict[str, Any]] = {
    "centered": {"centered": True, "selection": Selection(tail=0)},
    "tail": {"selection": Selection(tail=9)},
    "plain": {"centered": False, "thresholds": [-1, 0, 1]},
    "calibrated": {"centered": False},
    "window": {"windows": [30, None]},
    "dense": {"dense_layers": [0]},
}
Change = Callable[[dict[str, Any], dict[str, Any]], None]


def filled(kind: str, count: Any = None) -> KVCache:
    cache = KVCache(2, **KINDS[kind])
    k = np.random.default_rng(0).standard_normal((2, 2, 150, 48)).astype(np.float32)
    cache.append(k, k, 0, count=count)
    return cache


def contents(path: Path, kind: str, count: Any = None) -> tuple[dict[str, Any], dict[str, Any]]:
    filled(kind, count).save(path)
    return cache_file.read(path)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("count", [None, [3, 150]])
def test_a_cache_comes_back(kind: str, count: Any, tmp_path: Path) -> None:
    cache = filled(kind, None if count is None else np.array(count))
    cache.save(tmp_path / "a.kv")
    back = KVCache.load(tmp_path / "a.kv")
    for layer in range(2):
        same_layer(back[layer], cache[layer])
        assert back[layer].length is not None
        assert type(back[layer].length) is type(cache[layer].length)
    k = np.ones((2, 2, 70, 48), np.float32)
    for held in cache, back:  # sample and thresholds have come back too
        for layer in range(2):
            held.append(k, k, layer)
            held.append(k, k, layer)
        held.truncate(140)
    for layer in range(2):
        same_layer(back[layer], cache[layer])


def put(name: str, value: Any) -> Change:
    return lambda header, arrays: header.update({name: value})


def array(name: str, change: Callable[[Any], Any]) -> Change:
    return lambda header, arrays: arrays.update({name: change(arrays[name])})


def drop(name: str) -> Change:
    return lambda header, arrays: arrays.__delitem__(name)


def add(name: str, x: Any) -> Change:
    return lambda header, arrays: arrays.update({name: x})


def at(index: Any, value: Any) -> Callable[[Any], Any]:
    def change(x: Any) -> Any:
        x = x.copy()
        x[index] = value
        return x

    return change


FORGED: dict[str, tuple[str, Change]] = {
    "no layers": ("centered", put("layers", 0)),
    "many layers": ("centered", put("layers", 2**60)),
    "layers as text": ("centered", put("layers", "2")),
    "another field": ("centered", put("more", 1)),
    "selection as a list": ("centered", put("selection", [])),
    "selection out of range": ("centered", put("selection", {"refine": -1})),
    "centered as a number": ("centered", put("centered", 1)),
    "centered is false": ("centered", put("centered", False)),
    "dense layer 9": ("centered", put("dense_layers", [9])),
    "an option of a selection that there is not": ("centered", put("selection", {"tale": 9})),
    "dense layers as a number": ("centered", put("dense_layers", 3)),
    "a dense layer with codes": ("centered", put("dense_layers", [0])),
    "a window that is not one": ("centered", put("windows", [None, 0])),
    "a window with codes": ("centered", put("windows", [30, None])),
    "ragged as a number": ("centered", put("ragged", 1)),
    "ragged of one layer": ("centered", put("ragged", [False])),
    "ragged as text": ("centered", put("ragged", ["no", False])),
    "thresholds of centered codes": (
        "centered",
        add("0.thresholds", np.array([-1, 0, 1], np.float32)),
    ),
    "an array of layer 5": ("centered", add("5.k", np.zeros((1, 1, 1, 1), np.float32))),
    "an array of no layer": ("centered", add("k", np.zeros((1, 1, 1, 1), np.float32))),
    "another array": ("centered", add("0.more", np.zeros(3, np.float32))),
    "no k": ("centered", drop("0.k")),
    "no length": ("centered", drop("0.length")),
    "no planes": ("centered", drop("0.planes")),
    "no means": ("centered", drop("0.means")),
    "no codes of values": ("tail", drop("0.value_codes")),
    "no scales of values": ("tail", drop("0.value_scales")),
    "codes of values without a tail": (
        "centered",
        add("0.value_codes", np.zeros((2, 2, 3, 64, 2, 1), np.uint64)),
    ),
    "codes of fewer values": ("tail", array("0.value_codes", lambda x: x[:, :, :2])),
    "scales of fewer values": ("tail", array("0.value_scales", lambda x: x[:, :, :2])),
    "codes of values in int64": ("tail", array("0.value_codes", lambda x: x.astype(np.int64))),
    "scales of values in float32": (
        "tail",
        array("0.value_scales", lambda x: x.astype(np.float32)),
    ),
    "v with NaN and a tail": ("tail", array("0.v", at((1, 1, 3, 3), np.nan))),
    "a tail that the codes lack": ("centered", put("selection", {"tail": 9})),
    "a tail of plain codes": ("plain", put("selection", {"tail": 9})),
    "short v": ("centered", array("0.v", lambda x: x[:, :, :1])),
    "v of one head": ("centered", array("0.v", lambda x: x[:, :1])),
    "v in float16": ("centered", array("0.v", lambda x: x.astype(np.float16))),
    "k with NaN": ("centered", array("0.k", at((1, 1, 3, 3), np.nan))),
    "k of three axes": ("centered", array("0.k", lambda x: x[0])),
    "long lengths": ("centered", array("0.length", lambda x: x + 100)),
    "a negative length": ("centered", array("0.length", at(0, -5))),
    "unequal lengths": ("centered", array("0.length", at(0, 5))),
    "lengths of no token": ("centered", array("0.length", lambda x: 0 * x)),
    "lengths of a larger batch": ("centered", array("0.length", lambda x: np.tile(x, 2))),
    "lengths in uint64": ("centered", array("0.length", lambda x: x.astype(np.uint64))),
    "planes of one head": ("centered", array("0.planes", lambda x: x[:, :, :1])),
    "planes of fewer tiles": ("centered", array("0.planes", lambda x: x[:, :, :, :2])),
    "planes of more tiles": (
        "plain",
        array("0.planes", lambda x: np.tile(x, (1, 1, 1, 99, 1, 1, 1))),
    ),
    "means of fewer tiles": ("centered", array("0.means", lambda x: x[:, :, :2])),
    "means that are not finite": ("centered", array("0.means", at((0, 0, 0, 0), np.inf))),
    "scales of one head": ("centered", array("0.scales", lambda x: x[:, :1])),
    "an open tile of 63 rows": ("centered", array("0.open_tile", lambda x: x[:, :, :63])),
    "other thresholds": ("plain", array("0.codes_thresholds", lambda x: 2 * x)),
    "thresholds of one head": ("plain", array("0.codes_thresholds", lambda x: x[:1])),
    "thresholds that descend": ("calibrated", array("0.codes_thresholds", lambda x: -x)),
    "thresholds with infinity": ("calibrated", array("0.codes_thresholds", at((0, 2), np.inf))),
    "no sample": ("calibrated", drop("0.sample_first")),
    "no lasting sample": ("calibrated", drop("0.sample_lasting")),
    "a sample of more tokens": ("calibrated", array("0.sample_first", lambda x: x + 1)),
    "a sample of no token": ("calibrated", array("0.sample_first", lambda x: 0 * x)),
    "a lasting sample of few tokens": ("calibrated", array("0.sample_lasting", lambda x: x // 9)),
    "no base": ("window", drop("0.base")),
    "a negative base": ("window", array("0.base", lambda x: x - 1)),
    "a base after the end": ("window", array("0.base", lambda x: x + 999)),
    "a base inside the window": ("window", array("0.base", lambda x: x + 140)),
}


@pytest.mark.parametrize("name", FORGED)
def test_a_forged_file_is_refused(name: str, tmp_path: Path) -> None:
    kind, change = FORGED[name]
    header, arrays = contents(tmp_path / "a.kv", kind)
    change(header, arrays)
    cache_file.write(tmp_path / "b.kv", header, arrays)
    with pytest.raises(ValueError, match=r"b\.kv has contents that this release cannot take: "):
        KVCache.load(tmp_path / "b.kv")


def test_bits_after_the_last_coordinate_are_refused(tmp_path: Path) -> None:
    cache = KVCache(thresholds=[-1, 0, 1], centered=False)
    cache.append(*np.ones((2, 1, 70, 8), np.float32))
    cache.save(tmp_path / "a.kv")
    header, arrays = cache_file.read(tmp_path / "a.kv")
    arrays["0.planes"][0, 0, 0, 0, 0, 0, 0] |= np.uint64(1 << 8)
    cache_file.write(tmp_path / "a.kv", header, arrays)
    with pytest.raises(ValueError, match="zeros after the last coordinate"):
        KVCache.load(tmp_path / "a.kv")


@given(data=st.data())
def test_a_random_forgery_is_refused_or_harmless(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Another shape, dtype or number in any place: an error, or a cache that can be used."""
    path = tmp_path_factory.mktemp("kv") / "a.kv"
    codes = data.draw(st.sampled_from(list(KINDS)))
    header, arrays = contents(path, codes, np.array([40, 150]))
    for _ in range(data.draw(st.integers(1, 2))):
        name = data.draw(st.sampled_from(sorted(arrays)))
        x = arrays[name]
        kind = data.draw(st.integers(0, 3))
        if kind == 0:
            flat = x.reshape(-1).view(np.uint8)
            flat[data.draw(st.integers(0, len(flat) - 1))] ^= np.uint8(
                data.draw(st.integers(1, 255))
            )
        elif kind == 1:
            axis = data.draw(st.integers(0, x.ndim - 1))
            arrays[name] = np.repeat(x, 2, axis) if data.draw(st.booleans()) else x.take([0], axis)
        elif kind == 2:
            dtype = data.draw(st.sampled_from(["float16", "float32", "uint8", "uint64", "int64"]))
            with np.errstate(all="ignore"):
                arrays[name] = x.astype(dtype)
        else:
            other = data.draw(st.sampled_from(sorted(arrays)))
            arrays[name], arrays[other] = arrays[other], x
    cache_file.write(path, header, arrays)
    try:
        cache = KVCache.load(path)
    except ValueError:
        return
    if cache[0].shape is not None:
        B, H_kv, _, D = cache[0].shape
        k = np.ones((B, H_kv, 3, D), cache[0].k.dtype)
        cache.append(k, np.ones((*k.shape[:3], cache[0].v.shape[-1]), k.dtype))
        with np.errstate(all="ignore"):
            decode_attention(np.ones((B, H_kv, 1, D), np.float32), cache, 8)


def test_a_layer_without_tokens_comes_back_as_a_new_one(tmp_path: Path) -> None:
    cache = KVCache(2, windows=[None, 5])
    k = np.ones((2, 1, 3, 8), np.float32)
    for layer in range(2):
        cache.append(k, k, layer, count=np.array([0, 0]))
    cache.save(tmp_path / "a.kv")
    assert [KVCache.load(tmp_path / "a.kv")[i].shape for i in range(2)] == [None, None]
    for layer in range(2):  # here too it is as new: another batch may come
        cache.append(k[:1], k[:1], layer)
    assert [cache[i].shape for i in range(2)] == [(1, 1, 3, 8)] * 2
