"""Functions that only the GPU backend has, and the reason why it cannot be used."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import assert_same_bits
from strategies import cases, distances, selections, thresholds

import adamas_core.gpu
from adamas_core import Selection, reference
from adamas_core.gpu import _available, _launch


@given(case=cases(), data=st.data())
def test_encode_query(gpu: Any, case: Any, data: st.DataObject) -> None:
    H, H_kv = case.q.shape[1], case.k.shape[1]
    t = data.draw(thresholds(H_kv))
    bits = data.draw(st.sampled_from([2, 3, 4, 8]))
    x = reference.hadamard(case.q)
    of_heads = np.repeat(np.broadcast_to(t, (H_kv, 3)), H // H_kv, axis=0)
    assert_same_bits(
        gpu.encode_query(case.q, t, H_kv, Selection(query_bits=bits)),
        reference.quantize_query(x, bits),
    )
    assert_same_bits(
        gpu.encode_query(case.q, t, H_kv, Selection(metric="manhattan")),
        reference.quantize(x, of_heads),
    )


@settings(max_examples=100)
@given(case=cases(), data=st.data())
def test_keys_that_do_not_fit_are_left_out(gpu: Any, case: Any, data: st.DataObject) -> None:
    B, H_kv, S, _ = case.k.shape
    t = data.draw(thresholds(H_kv))
    start = np.array(data.draw(st.lists(st.integers(0, 130), min_size=B, max_size=B)), np.int32)
    start = np.repeat(start, 2)[::2]  # not contiguous
    T = -(-(130 + S) // 64)
    rng = np.random.default_rng(S)
    room = rng.integers(0, 2**64, (2, B, H_kv, T, *case.codes.planes.shape[4:]), np.uint64)
    planes, expected = room.copy(), room.copy()
    reference.encode(case.k, t, expected, start)
    gpu.encode(case.k, t, planes, start)
    assert_same_bits(planes, expected)

    short = room[:, :, :, : max(T - 2, 1)].copy()
    fits = short.copy()
    for b in range(B):
        n = int(np.clip(64 * short.shape[3] - start[b], 0, S))
        reference.encode(case.k[b : b + 1, :, :n], t, fits[:, b : b + 1], int(start[b]))
    gpu.encode(case.k, t, short, start)
    assert_same_bits(short, fits)


@given(d=distances(), data=st.data())
def test_topk_of_32_bits(gpu: Any, d: Any, data: st.DataObject) -> None:
    """Ranks in the order of distances of 16 bits; 65535 becomes 2^32 - 1."""
    K, selection = data.draw(selections(d.shape[-1]))
    ranks = d.astype(np.uint32) * np.uint32(65537)
    assert_same_bits(gpu.topk(ranks, K, selection), reference.topk(d, K, selection))


def test_more_than_four_axes(gpu: Any) -> None:
    x = np.random.default_rng(0).standard_normal((2, 3, 2, 3, 4, 33)).astype(np.float32)
    t = np.sort(np.random.default_rng(1).standard_normal((3, 3)).astype(np.float32))
    y = reference.hadamard(x.swapaxes(0, 1))
    assert_same_bits(gpu.hadamard(x.swapaxes(0, 1)), y)
    assert_same_bits(gpu.quantize(y, t), reference.quantize(y, t))


@pytest.mark.parametrize("D", [1024, 2048])
def test_the_largest_head_dims(gpu: Any, D: int) -> None:
    x = np.random.default_rng(0).standard_normal((1, 2, 5, D)).astype(np.float32)
    t = np.array([-1, 0.1, 1], np.float32)
    y = reference.hadamard(x)
    assert_same_bits(gpu.hadamard(x), y)
    assert_same_bits(gpu.quantize_query(y, 4), reference.quantize_query(y, 4))
    assert_same_bits(gpu.encode(x, t), reference.encode(x, t))


def test_importing_does_not_import_cupy() -> None:
    statement = "import adamas_core.gpu, sys; print('cupy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", statement], capture_output=True, text=True)
    assert done.stdout == "False\n", done.stderr


class CudaError(RuntimeError):
    """Stands for CuPy's CUDARuntimeError."""


def cupy_with(
    driver: int, devices: Any, nvrtc: Any = (12, 9), capability: str = "90"
) -> SimpleNamespace:
    """The functions of CuPy that why_not calls."""

    def answer(value: Any) -> Any:
        if isinstance(value, Exception):
            raise value
        return value

    runtime = SimpleNamespace(
        driverGetVersion=lambda: driver,
        runtimeGetVersion=lambda: 12090,
        getDeviceCount=lambda: answer(devices),
        CUDARuntimeError=CudaError,
    )
    return SimpleNamespace(
        cuda=SimpleNamespace(
            runtime=runtime,
            nvrtc=SimpleNamespace(getVersion=lambda: answer(nvrtc)),
            Device=lambda: SimpleNamespace(compute_capability=capability),
        )
    )


@pytest.mark.parametrize(
    ("cupy", "expected"),
    [
        (None, "CuPy is not installed"),
        (cupy_with(0, CudaError("insufficient")), "no NVIDIA driver"),
        (cupy_with(11080, CudaError("insufficient")), "CUDA 11.8 and CuPy is built for CUDA 12.9"),
        (cupy_with(12040, CudaError("cudaErrorNoDevice")), "gives no device: cudaErrorNoDevice"),
        (cupy_with(12040, 0), "no device"),
        (cupy_with(12040, 1, OSError("libnvrtc.so\nnot found")), "libnvrtc.so not found"),
        (cupy_with(12040, 1, capability="75"), "has compute capability 7.5 and the kernels need 8"),
        (cupy_with(12040, 1), None),
        (cupy_with(13000, 8), None),
    ],
)
def test_why_not(monkeypatch: Any, cupy: Any, expected: str | None) -> None:
    monkeypatch.setattr(_available, "find_spec", lambda name: cupy)
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    reason = adamas_core.gpu.why_not()
    if expected is None:
        assert reason is None
    else:
        assert reason is not None
        assert expected in reason
        assert "\n" not in reason


def test_a_call_without_a_gpu_gives_the_reason(monkeypatch: Any) -> None:
    monkeypatch.setattr(_available, "find_spec", lambda name: None)
    with pytest.raises(RuntimeError, match="CuPy is not installed"):
        _launch.cupy_device()
