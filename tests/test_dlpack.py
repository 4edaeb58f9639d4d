"""Bare producers of DLPack: dtypes, flags, layouts, and one call of each deleter."""

from __future__ import annotations

import gc
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from oracles import assert_same_bits
from producers import Producer
from strategies import dtypes, laid_out, layouts, seeds

import adamas_core as ac
from adamas_core.dispatch import on_host, views
from adamas_core.dlpack import Bfloat16, Unreadable, Words, tensor_of

versions = pytest.mark.parametrize("version", [None, (1, 0), (1, 3)])
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


def native(x: Any) -> Any:
    return views(x=x)[0]


@versions
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "int64", "bool", "uint8"])
def test_a_bare_producer_is_a_view(version: Any, dtype: str) -> None:
    x = np.arange(24).reshape(4, 6).astype(dtype)
    view = native(Producer(x, version))
    assert_same_bits(view, x)
    x[2, 3] = 0
    assert view[2, 3] == 0
    assert view.flags.writeable == (version is not None)


@given(
    shape=st.lists(st.integers(0, 4), min_size=1, max_size=4),
    dtype=dtypes,
    layout=layouts,
    seed=seeds,
    version=st.sampled_from([None, (1, 0)]),
)
def test_any_shape_and_strides(
    shape: list[int], dtype: np.dtype[Any], layout: str, seed: int, version: Any
) -> None:
    x = laid_out(np.random.default_rng(seed).standard_normal(shape).astype(dtype), layout)
    view = native(Producer(x, version))
    assert_same_bits(view, x)
    if x.size:
        assert view.__array_interface__["data"][0] == x.__array_interface__["data"][0]


@versions
def test_an_offset_and_no_strides(version: Any) -> None:
    x = np.arange(12, dtype=np.float32).astype(BFLOAT16)
    seen = np.ndarray((2, 3), BFLOAT16, x.view(np.uint16).data)
    view = native(Producer(seen, version, byte_offset=8, strides=None))
    assert_same_bits(view, x[4:10].reshape(2, 3))


@versions
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_empty_array_without_memory(version: Any, dtype: str) -> None:
    x = np.zeros((3, 0, 8), dtype)
    for strides in ({}, {"strides": None}):
        view = native(Producer(x, version, data=None, **strides))
        assert (view.shape, view.dtype) == (x.shape, x.dtype)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_read_only_memory_stays_so(dtype: str) -> None:
    view = native(Producer(np.ones((2, 8), dtype), flags=1))
    assert not view.flags.writeable


@versions
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_deleter_is_called_once_after_the_last_view(version: Any, dtype: str) -> None:
    producer = Producer(np.ones((4, 8), dtype), version)
    view = native(producer)
    part = view[1:, ::2]
    del view
    gc.collect()
    assert (producer.taken, producer.deleted) == (1, 0)
    del part
    gc.collect()
    assert (producer.taken, producer.deleted) == (1, 1)


@versions
@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"code": 10, "bits": 8}, r"x is float8_e4m3fn \(4, 2\); expected dtype float16, bfloat16"),
        ({"code": 7, "bits": 8}, "float8_e3m4"),
        ({"code": 8, "bits": 8}, r"float8_e4m3 \("),
        ({"code": 9, "bits": 8}, "float8_e4m3b11fnuz"),
        ({"code": 11, "bits": 8}, "float8_e4m3fnuz"),
        ({"code": 12, "bits": 8}, r"float8_e5m2 \("),
        ({"code": 13, "bits": 8}, "float8_e5m2fnuz"),
        ({"code": 14, "bits": 8}, "float8_e8m0fnu"),
        ({"code": 15, "bits": 6}, "float6_e2m3fn"),
        ({"code": 16, "bits": 6}, "float6_e3m2fn"),
        ({"code": 17, "bits": 4}, "float4_e2m1fn"),
        ({"code": 0, "bits": 4}, r"int4 \("),
        ({"code": 2, "bits": 128}, "float128"),
        ({"code": 3, "bits": 64}, "opaque"),
        ({"code": 99, "bits": 8}, "dtype code 99"),
        ({"code": 2, "bits": 32, "lanes": 4}, "float32 x 4"),
    ],
)
def test_another_dtype_is_named_and_given_back(version: Any, fields: Any, told: str) -> None:
    producer = Producer(np.ones((4, 2), np.uint8), version, **fields)
    with pytest.raises(TypeError, match=told):
        ac.hadamard(producer)
    gc.collect()
    assert (producer.taken, producer.deleted) == (1, 1)


def test_the_next_version_of_dlpack_is_refused() -> None:
    producer = Producer(np.ones((4, 2), np.float32), (2, 0))
    with pytest.raises(TypeError, match="x comes by DLPack 2; expected DLPack 1"):
        ac.hadamard(producer)
    gc.collect()
    assert producer.deleted == 1


def test_a_used_capsule_is_refused() -> None:
    class Used:
        capsule = np.ones(3).__dlpack__()

        def __dlpack_device__(self) -> tuple[int, int]:
            return 1, 0

        def __dlpack__(self) -> object:
            return self.capsule

    used = Used()
    np.testing.assert_array_equal(native(used), 1)
    with pytest.raises(TypeError, match=r"x comes as <capsule .*expected a capsule of DLPack that"):
        native(used)
    with pytest.raises(Unreadable, match="comes as 3"):
        tensor_of(3)


@pytest.mark.parametrize(
    ("device", "told"),
    [
        ((8, 0), "x, a producers.Producer, lies on device metal:0; expected the memory of the CPU"),
        ((15, 1), "lies on device webgpu:1"),
        ((99, 2), "lies on device DLPack device type 99:2"),
    ],
)
def test_a_device_without_a_backend_is_named(device: tuple[int, int], told: str) -> None:
    producer = Producer(np.ones((2, 8), np.float32), device=device)
    with pytest.raises(ValueError, match=told):
        ac.hadamard(producer)
    assert producer.taken == 0


def test_pinned_memory_is_memory_of_the_cpu() -> None:
    x = np.ones((2, 8), np.float32)
    assert_same_bits(ac.hadamard(Producer(x, device=(3, 0))), ac.hadamard(x))


@versions
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_a_step_of_bare_producers_gives_numpys_arrays(version: Any, dtype: str) -> None:
    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal((2, n, 64)).astype(dtype) for n in (1, 300, 300))
    a, b, c = (Producer(x, version) for x in (q, k, v))
    idx = ac.select_topk(a, ac.encode(b), 20)
    assert_same_bits(idx, ac.select_topk(q, ac.encode(k), 20))
    out, lse = ac.attend(a, b, c, idx, return_lse=True)
    assert_same_bits(out, ac.attend(q, k, v, idx))
    parts = [Producer(out, version)] * 2, [Producer(lse, version)] * 2
    for got, expected in zip(ac.merge(*parts), ac.merge([out] * 2, [lse] * 2), strict=True):
        assert_same_bits(got, expected)
    cache = ac.KVCache()
    cache.append(b, c)
    assert cache[0].k.dtype == np.dtype(dtype)
    assert_same_bits(ac.decode_attention(a, cache, 20), ac.decode_attention(q, cache, 20))


def test_bfloat16_goes_out_as_bfloat16() -> None:
    x = np.arange(6, dtype=np.float32).reshape(2, 3).astype(BFLOAT16)
    assert_same_bits(native(Bfloat16(x)), x)
    for options in ({}, {"max_version": (1, 0)}):
        assert tensor_of(Bfloat16(x).__dlpack__(**options)).dtype == "bfloat16"
    words = Words(Bfloat16(x))
    assert_same_bits(np.from_dlpack(words), x.view(np.uint16))
    assert words.dtype == "bfloat16"
    assert Bfloat16(x).__dlpack_device__() == (1, 0)


def test_a_bare_producer_on_a_gpu(device: Any) -> None:
    class OnCuda(Producer):
        """A producer whose class says that it is on a GPU, as the stand-in's arrays do."""

        def __dlpack_device__(self) -> tuple[int, int]:
            return 2, 0

    if device.__name__ == "cupy":
        pytest.skip("memory of the CPU cannot pass as a GPU's")
    for dtype in ("float32", "bfloat16"):
        x = np.arange(16, dtype=np.float32).reshape(2, 8).astype(dtype)
        view = native(OnCuda(x, None))
        assert isinstance(view, device.ndarray)
        assert_same_bits(view.host, x)
        got = ac.hadamard(OnCuda(x, None))
        assert isinstance(got, device.ndarray)
        assert_same_bits(on_host(got), ac.hadamard(x))
    with pytest.raises(TypeError, match="x is float8_e4m3fn"):
        ac.hadamard(OnCuda(np.ones((2, 8), np.uint8), None, code=10))
