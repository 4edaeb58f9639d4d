"""Arrays of other libraries go in without a copy, and results come back in the same library."""

from __future__ import annotations

import os
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import adamas_core as ac
from adamas_core.dispatch import views

pytestmark = pytest.mark.peers


@pytest.fixture(scope="module")
def torch() -> Any:
    if "CI" in os.environ:  # there a missing peer is a failure, never a skip
        return __import__("torch")
    return pytest.importorskip("torch", reason='torch is in the extra "peers"')


def inputs(torch: Any, dtype: str) -> tuple[Any, Any, Any]:
    rng = np.random.default_rng(0)
    shapes = [(2, 6, 1, 64), (2, 3, 300, 64), (2, 3, 300, 64)]
    tensors = [torch.from_numpy(rng.standard_normal(s).astype(np.float32)) for s in shapes]
    q, k, v = (x.to(getattr(torch, dtype)) for x in tensors)
    return q, k, v


def as_numpy(x: Any) -> np.ndarray[Any, Any]:
    (view,) = views(x=x)
    return view


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_torch_gets_what_numpy_gets(torch: Any, dtype: str) -> None:
    tensors = inputs(torch, dtype)
    q, k, v = map(as_numpy, tensors)
    codes, torch_codes = ac.encode(k), ac.encode(tensors[1])
    np.testing.assert_array_equal(torch_codes.planes, codes.planes)
    idx, torch_idx = ac.select_topk(q, codes, 20), ac.select_topk(tensors[0], torch_codes, 20)
    assert torch_idx.dtype == torch.int32
    np.testing.assert_array_equal(torch_idx.numpy(), idx)
    out, lse = ac.attend(*tensors, torch_idx, return_lse=True)
    expected, expected_lse = ac.attend(q, k, v, idx, return_lse=True)
    assert out.dtype == getattr(torch, dtype)
    np.testing.assert_array_equal(as_numpy(out).view(np.uint8), expected.view(np.uint8))
    np.testing.assert_array_equal(lse.numpy(), expected_lse)
    halves = [ac.attend(*tensors, torch_idx[..., i::2].contiguous(), None, True) for i in range(2)]
    merged, merged_lse = ac.merge(*zip(*halves, strict=True))
    assert merged.dtype == out.dtype
    torch.testing.assert_close(merged, out, atol=2e-2, rtol=2e-2)
    torch.testing.assert_close(merged_lse, lse)


def test_torch_through_the_single_operations(torch: Any) -> None:
    q, k, _ = inputs(torch, "float32")
    codes = ac.encode(k)
    x = ac.hadamard(q)
    planes = ac.quantize_query(x)
    assert planes.dtype == torch.uint64
    d = ac.score(planes, torch.from_numpy(codes.planes.copy()), torch.tensor([300, 200]))
    assert d.dtype == torch.uint16
    idx = ac.topk(d, 20)
    np.testing.assert_array_equal(idx[0], ac.select_topk(q, codes, 20)[0])
    assert idx.max() == 299
    assert idx[1].max() < 200


def test_torch_through_a_cache(torch: Any) -> None:
    q, k, v = inputs(torch, "bfloat16")
    cache = ac.KVCache()
    cache.append(k, v)
    assert cache[0].k.dtype == ml_dtypes.bfloat16
    out = ac.decode_attention(q, cache, 16)
    assert (out.shape, out.dtype) == (q.shape, torch.bfloat16)


def test_views_are_no_copies(torch: Any) -> None:
    for dtype in ("float32", "float16", "bfloat16"):
        x = torch.zeros(4, 6, dtype=getattr(torch, dtype))
        view = as_numpy(x[:, 1:3])
        x[2, 1] = 1
        assert view[2, 0] == 1
        assert view.shape == (4, 2)


def test_a_tensor_with_a_gradient(torch: Any) -> None:
    x = torch.ones(2, 8, requires_grad=True)
    assert not ac.hadamard(x).requires_grad


def test_another_device(torch: Any) -> None:
    x = torch.zeros(2, 8, device="meta")
    with pytest.raises(ValueError, match=r"x lies on device meta with shape \(2, 8\) and dtype"):
        ac.hadamard(x)


def test_a_cuda_device_is_named() -> None:
    class Elsewhere:
        shape, dtype = (2, 8), "float32"

        def __dlpack_device__(self) -> tuple[int, int]:
            return 2, 0

    with pytest.raises(ValueError, match=r"k lies on device cuda:0 .* no array is copied between"):
        ac.encode(Elsewhere())


def test_bfloat16_without_ml_dtypes(torch: Any, monkeypatch: Any) -> None:
    monkeypatch.setitem(__import__("sys").modules, "ml_dtypes", None)
    with pytest.raises(TypeError, match="x has dtype bfloat16, which NumPy knows only with ml_dty"):
        ac.hadamard(torch.zeros(2, 8, dtype=torch.bfloat16))
