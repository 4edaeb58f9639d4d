"""Arrays go to the backend of their device without a copy, and results back to their library."""

from __future__ import annotations

import os
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from conftest import moved
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import assert_attention, assert_same_bits, exact_attention
from producers import Producer
from strategies import FINITE, cases, metrics

import adamas_core as ac
import adamas_core.gpu
from adamas_core.dispatch import on_host, views

# A function that puts a torch tensor on a device.
Put = Callable[[Any], Any]


def native(x: Any) -> Any:
    """x as its backend gets it."""
    return views(x=x)[0]


def as_numpy(x: Any) -> np.ndarray[Any, Any]:
    return on_host(native(x))


# CuPy's arrays and NumPy's


@settings(max_examples=50)
@given(case=cases(FINITE), form=metrics, data=st.data())
def test_a_device_array_gets_what_numpys_gets(
    device: Any, case: Any, form: ac.Selection, data: st.DataObject
) -> None:
    """Every public function: the same bits, and within tolerance for attention."""
    q, k = moved(case.q), moved(case.k)
    S = case.k.shape[2]

    def same(got: Any, expected: Any) -> None:
        assert isinstance(got, device.ndarray)
        assert_same_bits(on_host(got), expected)

    length = data.draw(st.sampled_from([case.length, _placed(case.length)]))
    t = data.draw(st.sampled_from([ac.PAPER, moved(ac.PAPER), [-10, 0, 10]]))
    codes, expected_codes = ac.encode(q, t), ac.encode(case.q, t)
    assert codes.backend == "gpu"
    same(codes.planes, expected_codes.planes)
    x, expected_x = ac.hadamard(q), ac.hadamard(case.q)
    same(x, expected_x)
    same(ac.quantize(x, t), ac.quantize(expected_x, t))
    same(ac.quantize_query(x, 3), ac.quantize_query(expected_x, 3))
    weighted = form.metric == "weighted"
    query = ac.quantize_query(x, form.query_bits) if weighted else ac.quantize(x, t)
    d = ac.score(query, moved(case.codes.planes), length, form.metric)
    expected_d = ac.score(on_host(query), case.codes.planes, case.length, form.metric)
    same(d, expected_d)
    if not case.tokens:
        return
    K = data.draw(st.integers(1, case.tokens))
    same(ac.topk(d, K), ac.topk(expected_d, K))
    codes = ac.KeyCodes(moved(case.codes.planes), length, case.codes.thresholds, q.shape[-1])
    expected_codes = ac.KeyCodes(case.codes.planes, case.length, case.codes.thresholds, q.shape[-1])
    indices = ac.select_topk(q, codes, K, form)
    expected_indices = ac.select_topk(case.q, expected_codes, K, form)
    same(indices, expected_indices)
    if S and q.shape[2] <= S and not has_subnormals(case.k):
        same(ac.calibrate(k), ac.calibrate(case.k))


def has_subnormals(k: np.ndarray[Any, Any]) -> bool:
    """Whether k holds numbers that CuPy's own kernels take as 0: they are below float32's range."""
    size = np.abs(k.astype(np.float64))
    return bool(((size > 0) & (size < np.finfo(np.float32).tiny)).any())


def _placed(length: Any) -> Any:
    return length if isinstance(length, int) else moved(length)


def test_attention_of_device_arrays(device: Any) -> None:
    q, k, v = (np.random.default_rng(i).standard_normal(s).astype(np.float16) for i, s in
               enumerate([(2, 6, 1, 64), (2, 3, 300, 64), (2, 3, 300, 64)]))  # fmt: skip
    there = [moved(x) for x in (q, k, v)]
    parts = []
    for indices in (ac.select_topk(there[0], ac.encode(there[1]), 40), None):
        out, lse = ac.attend(*there, indices, return_lse=True)
        assert isinstance(out, device.ndarray)
        chosen = None if indices is None else on_host(indices)
        expected, expected_lse = exact_attention(q, k, v, chosen)
        assert_attention(on_host(out), expected, q.dtype)
        np.testing.assert_allclose(on_host(lse), expected_lse, rtol=2e-6)
        parts.append((out, lse))
    merged, merged_lse = ac.merge(*zip(*parts, strict=True))
    assert isinstance(merged, device.ndarray)
    on_cpu = ac.merge(*zip(*[map(on_host, part) for part in parts], strict=True))
    np.testing.assert_allclose(on_host(merged), on_cpu[0], rtol=2e-3, atol=1e-6)
    np.testing.assert_allclose(on_host(merged_lse), on_cpu[1], rtol=1e-6)
    with pytest.raises(IndexError, match="300"):
        ac.attend(*there, moved(np.full((2, 6, 1, 3), 300, np.int32)))


def test_codes_grow_on_the_device(device: Any) -> None:
    k = np.random.default_rng(0).standard_normal((2, 3, 200, 80)).astype(np.float32)
    here, there = ac.encode(k[:, :, :50]), ac.encode(moved(k[:, :, :50]))
    assert here.device == "cpu"
    assert there.device == "cuda:0"
    count = np.array([3, 70])
    for codes, put in ((here, np.asarray), (there, moved)):
        codes.append(put(k[:, :, 50:120]), put(count))
        codes.truncate(100)
        codes.append(put(k[:, :, 120:]))
    assert isinstance(there.planes, device.ndarray)
    np.testing.assert_array_equal(there.length, here.length)
    assert_same_bits(on_host(there.planes), here.planes)
    empty = ac.KeyCodes.empty(2, 3, 80, there.thresholds, "gpu", capacity=64)
    empty.append(moved(k))
    assert_same_bits(on_host(empty.planes), ac.encode(k, here.thresholds).planes)


kv = np.ones((2, 3, 100, 64), np.float32)
q1 = np.ones((2, 6, 1, 64), np.float32)


def cache_of(k: Any, **options: Any) -> ac.KVCache:
    cache = ac.KVCache(**options)
    cache.append(k, k)
    return cache


@pytest.mark.parametrize(
    "call",
    [
        lambda here, there: ac.attend(here(q1), there(kv), there(kv), None),
        lambda here, there: ac.select_topk(here(q1), ac.encode(there(kv)), 8),
        lambda here, there: ac.encode(there(kv)).append(here(kv)),
        lambda here, there: cache_of(there(kv)).append(here(kv), here(kv)),
        lambda here, there: ac.KVCache().append(here(kv), there(kv)),
        lambda here, there: ac.decode_attention(here(q1), cache_of(there(kv)), 8),
        lambda here, there: ac.encode(here(kv), backend=ac.encode(there(kv)).backend),
        lambda here, there: cache_of(here(kv), backend=ac.encode(there(kv)).backend),
    ],
    ids=["attend", "select_topk", "codes", "cache", "k and v", "decode", "encode", "new cache"],
)
@pytest.mark.parametrize("swapped", [False, True])
def test_two_devices(device: Any, call: Callable[[Any, Any], Any], swapped: bool) -> None:
    """The error shows the array, its shape, dtype and device, in either order of devices."""
    puts: list[Any] = [np.asarray, moved]
    with pytest.raises(
        ValueError,
        match=r"[qk] is float32 \(2, ., 1(00)?, 64\) on (cpu|cuda:0).*no array is copied",
    ):
        call(*(reversed(puts) if swapped else puts))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: ac.hadamard(x[..., ::2]), r"expected the last axis contiguous"),
        (lambda x: ac.topk(x, 3), "distances is float32"),
        (lambda x: ac.encode(x, [2, 1, 0]), "ascending"),
        (lambda x: ac.calibrate(x * float("nan")), "expected finite keys"),
    ],
)
def test_checks_of_device_arrays(device: Any, call: Callable[[Any], Any], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        call(moved(kv))


def test_checked_mode_on_the_device(device: Any) -> None:
    bad = kv.copy()
    bad[1, 2, 3, 4] = np.nan
    with ac.checked(), pytest.raises(ValueError, match=r"found 1, the first at \(1, 2, 3, 4\)"):
        ac.hadamard(moved(bad))


# Another library on the same device


class Foreign:
    """An array that offers DLPack and its library's name, and nothing else."""

    def __init__(self, x: Any, device: tuple[int, int] = (2, 0)) -> None:
        self.x, self.shape, self.dtype, self._device = x, x.shape, x.dtype, device

    def __dlpack_device__(self) -> tuple[int, int]:
        return self._device

    def __dlpack__(self, **options: Any) -> Any:
        return self.x.__dlpack__(**options)

    def __array_namespace__(self, **_: Any) -> Any:
        dtypes = {name: np.dtype(name) for name in ("float32", "int32", "uint64", "uint16")}
        return SimpleNamespace(from_dlpack=Foreign, __name__="foreign", **dtypes)


def test_another_library_on_the_device(device: Any) -> None:
    x = moved(np.ones((2, 8), np.float32))
    view = native(Foreign(x))
    assert isinstance(view, device.ndarray)
    assert view.data.ptr == x.data.ptr
    y = ac.hadamard(Foreign(x))
    assert type(y) is Foreign
    assert isinstance(y.x, device.ndarray)
    assert_same_bits(on_host(y.x), ac.hadamard(on_host(x)))


def test_another_device_than_the_current_one(device: Any) -> None:
    with pytest.raises(
        ValueError,
        match=r"x lies on device cuda:3 with shape \(2, 8\) .* cuda:0, CuPy's .*Device\(3\)",
    ):
        ac.hadamard(Foreign(np.ones((2, 8), np.float32), (2, 3)))


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (lambda: ac.encode(Foreign(kv)), r"k lies on device cuda:0 with shape \(2, 3, 100, 64\) a"),
        (lambda: ac.encode(kv, backend="gpu"), "^CuPy is not"),
        (lambda: ac.KVCache(backend="gpu"), "^CuPy is not"),
    ],
)
def test_without_a_gpu(monkeypatch: Any, call: Callable[[], Any], told: str) -> None:
    from adamas_core.gpu import _launch

    monkeypatch.setattr(adamas_core.gpu._available, "find_spec", lambda name: None)
    monkeypatch.setattr(_launch, "device", _launch.cupy_device.__wrapped__)
    with pytest.raises(RuntimeError, match=told) as raised:
        call()
    assert str(raised.value).endswith('CuPy is not installed: pip install "adamas-core[gpu]"')


# torch's tensors, on the CPU and on a GPU


@pytest.fixture(scope="module")
def torch() -> Any:
    if "CI" in os.environ:  # there a missing peer is a failure, never a skip
        return __import__("torch")
    return pytest.importorskip("torch", reason='torch is in the extra "peers"')


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.shim)])
def put(request: pytest.FixtureRequest, torch: Any, monkeypatch: Any) -> Put:
    """Puts a tensor on a device. Without a GPU the tensor only says that it is on one."""
    if request.param == "cpu":
        return lambda x: x
    device = request.getfixturevalue("device")
    if device.__name__ == "cupy":
        if not torch.cuda.is_available():
            pytest.skip("this build of torch has no CUDA")
        return lambda x: x.cuda()

    class OnCuda(torch.Tensor):  # type: ignore[misc, name-defined]
        def __dlpack_device__(self) -> tuple[int, int]:
            return 2, 0

        def __dlpack__(self, **_: Any) -> np.ndarray[Any, Any]:
            return np.from_dlpack(self.as_subclass(torch.Tensor))

    def from_dlpack(x: Any) -> Any:
        assert isinstance(x, device.ndarray)
        return torch.from_dlpack(x.host).as_subclass(OnCuda)

    import array_api_compat.torch

    monkeypatch.setattr(array_api_compat.torch, "from_dlpack", from_dlpack)
    return lambda x: x.as_subclass(OnCuda)


def inputs(torch: Any, dtype: str, put: Put) -> tuple[Any, Any, Any]:
    rng = np.random.default_rng(0)
    shapes = [(2, 6, 1, 64), (2, 3, 300, 64), (2, 3, 300, 64)]
    tensors = [torch.from_numpy(rng.standard_normal(s).astype(np.float32)) for s in shapes]
    q, k, v = (put(x.to(getattr(torch, dtype))) for x in tensors)
    return q, k, v


@pytest.mark.peers
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_torch_gets_what_the_backends_arrays_get(torch: Any, put: Put, dtype: str) -> None:
    tensors = inputs(torch, dtype, put)
    q, k, v = map(native, tensors)
    codes, torch_codes = ac.encode(k), ac.encode(tensors[1])
    np.testing.assert_array_equal(on_host(torch_codes.planes), on_host(codes.planes))
    idx, torch_idx = ac.select_topk(q, codes, 20), ac.select_topk(tensors[0], torch_codes, 20)
    assert type(torch_idx) is type(tensors[0])
    assert torch_idx.dtype == torch.int32
    assert_same_bits(as_numpy(torch_idx), on_host(idx))
    out, lse = ac.attend(*tensors, torch_idx, return_lse=True)
    expected, expected_lse = ac.attend(q, k, v, idx, return_lse=True)
    assert out.dtype == getattr(torch, dtype)
    np.testing.assert_array_equal(as_numpy(out).view(np.uint8), on_host(expected).view(np.uint8))
    assert_same_bits(as_numpy(lse), on_host(expected_lse))
    parts = [torch_idx[..., i::2].contiguous() for i in range(2)]
    halves = [ac.attend(*tensors, x, return_lse=True) for x in parts]
    merged, merged_lse = ac.merge(*zip(*halves, strict=True))
    assert merged.dtype == out.dtype
    torch.testing.assert_close(merged, out, atol=2e-2, rtol=2e-2)
    torch.testing.assert_close(merged_lse, lse)


@pytest.mark.peers
def test_torch_through_the_single_operations(torch: Any, put: Put) -> None:
    q, k, _ = inputs(torch, "float32", put)
    codes = ac.encode(k, centered=False)
    x = ac.hadamard(q)
    planes = ac.quantize_query(x)
    assert planes.dtype == torch.uint64
    key_planes = put(torch.from_numpy(on_host(codes.planes).copy()))
    d = ac.score(planes, key_planes, put(torch.tensor([300, 200])))
    assert d.dtype == torch.uint16
    idx = ac.topk(d, 20)
    np.testing.assert_array_equal(as_numpy(idx[0]), as_numpy(ac.select_topk(q, codes, 20)[0]))
    assert idx.max() == 299
    assert idx[1].max() < 200


@pytest.mark.peers
def test_torch_through_a_cache(torch: Any, put: Put) -> None:
    q, k, v = inputs(torch, "bfloat16", put)
    cache = ac.KVCache()
    cache.append(k, v)
    assert cache[0].k.dtype == ml_dtypes.bfloat16
    out = ac.decode_attention(q, cache, 16)
    assert (out.shape, out.dtype) == (q.shape, torch.bfloat16)
    assert type(out) is type(q)


@pytest.mark.peers
def test_views_are_no_copies(torch: Any, put: Put) -> None:
    for dtype in ("float32", "float16", "bfloat16"):
        x = put(torch.zeros(4, 6, dtype=getattr(torch, dtype)))
        view = native(x[:, 1:3])
        x[2, 1] = 1
        assert view[2, 0] == 1
        assert view.shape == (4, 2)


@pytest.mark.peers
def test_a_tensor_with_a_gradient(torch: Any) -> None:
    x = torch.ones(2, 8, requires_grad=True)
    assert not ac.hadamard(x).requires_grad


@pytest.mark.peers
def test_another_device(torch: Any) -> None:
    x = torch.zeros(2, 8, device="meta")
    with pytest.raises(ValueError, match=r"x lies on device meta with shape \(2, 8\) and dtype"):
        ac.hadamard(x)


@pytest.mark.peers
def test_bfloat16_without_ml_dtypes(torch: Any, monkeypatch: Any) -> None:
    monkeypatch.setitem(__import__("sys").modules, "ml_dtypes", None)
    with pytest.raises(TypeError, match="x has dtype bfloat16, which NumPy knows only with ml_dty"):
        ac.hadamard(torch.zeros(2, 8, dtype=torch.bfloat16))


@pytest.mark.peers
def test_an_eight_bit_float_is_named(torch: Any) -> None:
    k = torch.zeros(2, 3, 100, 64, dtype=torch.float8_e4m3fn)
    with pytest.raises(TypeError, match=r"k is float8_e4m3fn \(2, 3, 100, 64\); expected dtype"):
        ac.encode(k)


@pytest.mark.peers
def test_inside_a_transform_of_torch(torch: Any) -> None:
    told = r"x is a tensor inside torch.vmap .*expected a tensor outside of it"
    with pytest.raises(TypeError, match=told):
        torch.vmap(ac.hadamard)(torch.zeros(2, 8))
    with pytest.raises(TypeError, match=told):
        torch.func.grad(lambda x: ac.hadamard(x).sum())(torch.zeros(8))


@pytest.mark.peers
def test_a_tensor_that_does_not_export(torch: Any) -> None:
    with pytest.raises(ValueError, match=r"x lies on device cpu:0 .*, and cannot be read: "):
        ac.hadamard(torch.zeros(2, 8, dtype=torch.float32).to_sparse())


# JAX's arrays


@pytest.fixture(scope="module")
def jax() -> Any:
    if "CI" in os.environ:
        return __import__("jax")
    return pytest.importorskip("jax", reason='jax is in the extra "peers"')


@pytest.mark.peers
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_jax_without_a_copy(jax: Any, dtype: str) -> None:
    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal((2, n, 64)).astype(dtype) for n in (1, 300, 300))
    a, b, c = map(jax.numpy.asarray, (q, k, v))
    assert native(b).__array_interface__["data"][0] == b.unsafe_buffer_pointer()
    assert_same_bits(native(b), k)
    idx = ac.select_topk(a, ac.encode(b), 20)
    assert isinstance(idx, jax.Array)
    out = ac.attend(a, b, c, idx)
    assert isinstance(out, jax.Array)
    assert_same_bits(np.asarray(out), ac.attend(q, k, v, np.asarray(idx)))


@pytest.mark.peers
@pytest.mark.parametrize("transform", ["jit", "vmap", "grad"])
def test_a_tracer_of_jax_is_told_where_to_go(jax: Any, transform: str) -> None:
    told = r"x is traced by JAX, .*: float32\[8\]; expected an array with .*; adamas_core.jax has"
    x = jax.numpy.zeros((2, 8) if transform == "vmap" else 8)
    with pytest.raises(TypeError, match=told):
        getattr(jax, transform)(ac.hadamard)(x)


@pytest.mark.peers
@pytest.mark.parametrize(
    "call",
    [
        lambda q, k, codes, cache: ac.select_topk(q, codes, 8),
        lambda q, k, codes, cache: ac.attend(q, k, k, None),
        lambda q, k, codes, cache: ac.decode_attention(q, cache, 8),
        lambda q, k, codes, cache: cache.append(k, k),
        lambda q, k, codes, cache: codes.append(k),
        lambda q, k, codes, cache: ac.encode(k).planes,
    ],
)
def test_every_function_tells_a_tracer(jax: Any, call: Callable[..., Any]) -> None:
    k = np.ones((2, 100, 64), np.float32)
    codes, cache = ac.encode(k), ac.KVCache()
    cache.append(k, k)
    with pytest.raises(TypeError, match=r"[qk] is traced by JAX"):
        jax.jit(lambda q, k: call(q, k, codes, cache))(k[:, :1], k)


# A library that array-api-compat does not know


class Tensor:
    """A tensor as TensorFlow's: it speaks DLPack, and its dtype is an object of its own."""

    class DType:
        def __init__(self, name: str) -> None:
            self.name = name

        def __repr__(self) -> str:
            return f"<dtype: '{self.name}'>"

    def __init__(self, x: np.ndarray[Any, Any]) -> None:
        self.producer = Producer(x, None)
        self.shape, self.dtype, self.device = list(x.shape), self.DType(x.dtype.name), "/CPU:0"

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.producer.__dlpack_device__()

    def __dlpack__(self, stream: int | None = None) -> object:
        return self.producer.__dlpack__()

    def __array__(self, *_: Any) -> Any:
        raise AssertionError("it was copied")


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_an_unknown_library_gets_numpys_arrays(dtype: str) -> None:
    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal((2, n, 64)).astype(dtype) for n in (1, 300, 300))
    a, b, c = map(Tensor, (q, k, v))
    assert np.shares_memory(native(b), k)
    idx = ac.select_topk(a, ac.encode(b), 20)
    assert_same_bits(idx, ac.select_topk(q, ac.encode(k), 20))
    out, lse = ac.attend(a, b, c, Tensor(idx), return_lse=True)
    assert_same_bits(out, ac.attend(q, k, v, idx))
    merged, _ = ac.merge([Tensor(out)] * 2, [Tensor(lse)] * 2)
    assert_same_bits(merged, out)


def test_an_eight_bit_float_of_an_unknown_library() -> None:
    x = Tensor(np.ones((2, 8), ml_dtypes.float8_e5m2).view(np.uint8))
    x.producer = Producer(np.ones((2, 8), np.uint8), None, code=12)
    with pytest.raises(TypeError, match=r"x is float8_e5m2 \(2, 8\); expected dtype float16"):
        ac.hadamard(x)
