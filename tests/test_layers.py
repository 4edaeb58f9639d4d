"""Views of a layer, and changes that end with one store."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
from cache_model import interrupted, same_layer
from numpy.typing import NDArray

from adamas_core import KVCache, Selection, encode, encode_values, select_topk
from adamas_core.dispatch import load


def normal(*shape: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def filled(S: int = 100, layers: int = 1, **options: Any) -> KVCache:
    cache = KVCache(layers, **options)
    k = normal(1, 2, S, 48)
    for layer in range(layers):
        cache.append(k, k, layer)
    return cache


@pytest.mark.parametrize("name", ["append", "truncate", "reserve"])
def test_codes_of_a_cache_are_changed_by_the_cache_alone(name: str) -> None:
    cache = filled()
    codes = cache[0].codes
    assert codes is not None
    with pytest.raises(ValueError, match=rf"KeyCodes.{name}: the codes belong to a KVCache"):
        getattr(codes, name)(normal(1, 2, 5, 48) if name == "append" else 50)
    assert codes.tokens == cache[0].tokens == 100


@pytest.mark.parametrize("name", ["append", "truncate", "reserve"])
def test_codes_of_values_are_changed_by_the_cache_alone(name: str) -> None:
    cache = filled(selection=Selection(tail=5))
    values, v = cache[0].value_codes, normal(1, 2, 60, 48)
    assert values is not None
    given = {"append": (v,), "truncate": (50, v), "reserve": (50,)}
    with pytest.raises(ValueError, match=rf"ValueCodes.{name}: the codes belong to a KVCache"):
        getattr(values, name)(*given[name])
    assert values.tokens == cache[0].tokens == 100


def test_codes_of_values_follow_the_cache() -> None:
    cache = filled(selection=Selection(tail=5), layers=3, dense_layers=[1], windows=[None, None, 9])
    assert [cache[i].value_codes is None for i in range(3)] == [False, True, True]
    assert filled(selection=Selection(tail=0))[0].value_codes is None
    values, v = cache[0].value_codes, normal(1, 2, 200, 48, seed=1)
    assert values is not None
    cache.append(v, v)
    whole = encode_values(cache[0].v)
    assert (values.tokens, values.shape, values.nbytes) == (300, whole.shape, whole.nbytes)
    np.testing.assert_array_equal(values.total, whole.total)
    codes = cache[0].codes
    assert codes is not None
    assert cache[0].nbytes == 2 * cache[0].k.nbytes + codes.nbytes + values.nbytes
    for i in range(1, 3):
        cache.append(v, v, i)
    cache.truncate(0)
    assert cache[0].value_codes is None
    with pytest.raises(ValueError, match="ValueCodes: layer 0 of the cache has no codes any more"):
        values.total  # noqa: B018


def test_values_that_have_no_code_are_refused() -> None:
    k = normal(1, 2, 5, 8)
    bad = k.copy()
    bad[0, 0, 3, 0] = np.inf
    KVCache(selection=Selection(tail=0)).append(k, bad)
    cache = KVCache(2, selection=Selection(tail=5), dense_layers=[1])
    cache.append(k, bad, 1)
    with pytest.raises(ValueError, match=r"KVCache.append: v is .*; expected finite numbers"):
        cache.append(k, bad)
    assert cache[0].tokens == 0


def test_codes_of_a_cache_follow_it() -> None:
    cache = filled(centered=True)
    codes, k, q = cache[0].codes, normal(1, 2, 200, 48, seed=1), normal(1, 2, 1, 48, seed=2)
    assert codes is not None
    cache.append(k, k)
    whole = encode(cache[0].k, bits=3)
    assert (codes.tokens, codes.shape, codes.nbytes) == (300, whole.shape, whole.nbytes)
    found = select_topk(q, codes, 20)
    np.testing.assert_array_equal(found, select_topk(q, whole, 20))
    cache.truncate(0)
    assert cache[0].codes is None
    with pytest.raises(ValueError, match="layer 0 of the cache has no codes any more"):
        codes.tokens  # noqa: B018


@pytest.mark.parametrize("name", ["metric", "backend", "selection", "centered", "windows", "k"])
def test_attributes_cannot_be_set(name: str) -> None:
    cache = filled()
    for thing in (cache, cache[0], cache[0].codes, encode(normal(1, 70, 16))):
        with pytest.raises(AttributeError):
            setattr(thing, name, Selection())


def test_what_is_seen_cannot_be_written() -> None:
    cache = filled()
    codes = cache[0].codes
    assert codes is not None
    for x in (cache[0].k, cache[0].v, codes.thresholds):
        with pytest.raises(ValueError, match="read-only"):
            x[...] = 0


@pytest.mark.parametrize("name", ["truncate", "reset", "fork", "reorder", "remove"])
@pytest.mark.parametrize(
    "options", [{"centered": False}, {"centered": True}, {"selection": Selection(tail=5)}]
)
def test_an_operation_on_all_layers_is_done_in_all_or_in_none(
    name: str, options: dict[str, Any]
) -> None:
    """Whatever the bytecode at which Ctrl-C comes."""
    arguments: dict[str, Any] = {
        "truncate": 70,
        "reset": 0,
        "fork": 1,
        "reorder": [1, 1, -1, 0],
        "remove": [0],
    }
    k = normal(2, 2, 300, 48)

    def made() -> KVCache:
        cache = KVCache(3, windows=[None, None, 200], **options)
        for layer in range(3):
            cache.append(k, k, layer, count=np.array([300, 130]))
        return cache

    before, after = made(), made()
    getattr(after, name)(arguments[name])
    moment, stopped = 1, True
    while stopped:
        cache = made()
        stopped = interrupted(partial(getattr(cache, name), arguments[name]), moment)
        expected = after if cache[0].shape != before[0].shape else before
        if name == "truncate" and cache[0].codes.tokens == 70:  # type: ignore[union-attr]
            expected = after
        if name == "reset" and cache[0].length.tolist()[0] == 0:  # type: ignore[union-attr]
            expected = after
        for layer in range(3):
            same_layer(cache[layer], expected[layer])
        moment += 1 + moment // 8
    assert moment > 100


def test_a_cache_is_freed_when_it_is_let_go() -> None:
    """Views hold no cycle, so that gigabytes do not wait for the garbage collector."""
    import gc
    import weakref

    cache = filled()
    cache[0].codes.shape  # type: ignore[union-attr]  # noqa: B018
    alive = weakref.ref(cache._layers._slots[0])  # type: ignore[type-var]
    gc.disable()
    try:
        del cache
        assert alive() is None
    finally:
        gc.enable()


def test_the_backend_is_known_from_the_first_tokens_on() -> None:
    cache = KVCache(2)
    assert cache.backend is None
    k = normal(1, 2, 5, 8)
    bad = k.copy()
    bad[0, 0, 0, 0] = np.nan
    with pytest.raises(ValueError, match="finite"):
        cache.append(bad, bad)
    assert cache.backend is None
    cache.append(k, k, 1)
    assert cache.backend == "cpu"
    assert KVCache(backend="reference").backend == "reference"


@pytest.mark.parametrize(
    "options",
    [
        {"centered": True},
        {"thresholds": [-1, 0, 1]},
        {},
        {"centered": True, "selection": Selection(tail=5)},
    ],
)
@pytest.mark.parametrize("window", [None, 20])
def test_an_interrupted_append_changes_nothing(options: dict[str, Any], window: int | None) -> None:
    """At any bytecode, and the next append goes on from there."""
    k = normal(1, 2, 300, 48)
    options = {"centered": False, "windows": [window], **options}
    caches = {}
    for n in (100, 260, 300):
        caches[n] = KVCache(**options)
        for end in (100, 260, 300):
            if end <= n:
                part = slice({100: 0, 260: 100, 300: 260}[end], end)
                caches[n].append(k[:, :, part], k[:, :, part])
    moment, stopped = 1, True
    while stopped:
        cache = KVCache(**options)
        cache.append(k[:, :, :100], k[:, :, :100])
        call = partial(cache.append, k[:, :, 100:260], k[:, :, 100:260])
        stopped = interrupted(call, moment)
        if cache[0].tokens == 100:
            same_layer(cache[0], caches[100][0])
            call()
        same_layer(cache[0], caches[260][0])
        cache.append(k[:, :, 260:], k[:, :, 260:])
        same_layer(cache[0], caches[300][0])
        moment += 1 + moment // 15


def test_growth_that_ended_between_keys_and_values_goes_on() -> None:
    k = normal(1, 2, 300, 48)
    cache, whole = KVCache(), KVCache()
    cache.append(k[:, :, :100], k[:, :, :100])
    slot = cache._layers._slots[0]
    slot.put(next(iter(slot.now().with_room(200))))
    cache.append(k[:, :, 100:], k[:, :, 100:])
    whole.append(k, k)
    same_layer(cache[0], whole[0])


@pytest.mark.parametrize("name", ["append", "truncate", "codes"])
def test_a_reader_while_an_operation_runs_changes_nothing(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thread that works on another layer, or only reads, as in the middle of the kernel."""
    k = normal(1, 2, 128, 48)
    cache = KVCache(2)
    codes = encode(k[:, :, :100])
    for layer in range(2):
        cache.append(k[:, :, :100], k[:, :, :100], layer)
    home = load("cpu")
    kernel, reads = home.encode_centered, []

    def read_too(*args: Any, **options: Any) -> Any:
        planes = kernel(*args, **options)
        reads.append((cache.backend, cache.nbytes, cache[0].tokens, codes.tokens))
        return planes

    monkeypatch.setattr(home, "encode_centered", read_too)
    if name == "append":
        cache.append(k[:, :, 100:], k[:, :, 100:])
    elif name == "truncate":
        cache.truncate(50)
    else:
        codes.append(k[:, :, 100:])
    monkeypatch.undo()
    assert reads
    whole, fresh = encode(k), KVCache()
    n = cache[0].tokens
    fresh.append(k[:, :, :n], k[:, :, :n])
    same_layer(cache[0], fresh[0])
    if name == "codes":
        np.testing.assert_array_equal(codes.planes, whole.planes)
