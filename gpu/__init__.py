"""The GPU backend: CUDA C++ in kernels/, launched through CuPy on its current stream.

The functions have the names, arguments, dtypes and results of ``adamas_core.reference``, on CuPy's
arrays. CuPy is imported at the first call, not before.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

from . import _launch
from .attend import attend
from .center import encode_centered
from .decode import DecodeStep, DeviceCache, device_cache
from .hadamard import hadamard
from .quantize import encode, encode_query, encode_step, quantize, quantize_query
from .rerank import rerank
from .score import score
from .select import attend_topk, select_topk
from .topk import topk

__all__ = [
    "DecodeStep",
    "DeviceCache",
    "array_module",
    "attend",
    "attend_topk",
    "current_device",
    "device_cache",
    "encode",
    "encode_centered",
    "encode_query",
    "encode_step",
    "hadamard",
    "quantize",
    "quantize_query",
    "rerank",
    "score",
    "select_topk",
    "topk",
    "why_not",
]


OLDEST = 80  # compute capability 8.0: what the kernels' instructions need


def array_module() -> Any:
    """CuPy; RuntimeError with the reason where it cannot be used."""
    return _launch.device().xp


def current_device() -> int:
    """The number of CuPy's current device; RuntimeError as for `array_module`."""
    return _launch.device().number()


def why_not() -> str | None:
    """Say in one sentence why the GPU backend cannot be used, or None where it can."""
    if find_spec("cupy") is None:
        return 'CuPy is not installed: pip install "adamas-core[gpu]"'
    try:
        import cupy
    except ImportError as error:
        return f"CuPy cannot be imported: {' '.join(str(error).split())}"
    runtime = cupy.cuda.runtime
    driver, built_for = runtime.driverGetVersion(), runtime.runtimeGetVersion()
    if driver == 0:
        return "no NVIDIA driver is loaded on this machine"
    if driver // 1000 < built_for // 1000:
        return (
            f"the NVIDIA driver goes up to CUDA {_version(driver)} and CuPy is built for CUDA "
            f"{_version(built_for)}: update the driver, or install cupy-cuda{driver // 1000}x"
        )
    try:
        devices = runtime.getDeviceCount()
    except runtime.CUDARuntimeError as error:
        return f"the NVIDIA driver is there, but gives no device: {error}"
    if devices == 0:
        return "the NVIDIA driver is there, but no device (CUDA_VISIBLE_DEVICES may hide it)"
    capability = int(cupy.cuda.Device().compute_capability)
    if capability < OLDEST:
        return (
            f"the device has compute capability {capability / 10} and the kernels need "
            f"{OLDEST / 10}, an A100 or later"
        )
    try:
        cupy.cuda.nvrtc.getVersion()
    except Exception as error:  # what a missing library raises differs between releases of CuPy
        reason = " ".join(str(error).split())
        return f"NVRTC, which compiles the kernels, cannot be loaded: {reason}"
    return None


def _version(number: int) -> str:
    """CUDA's number of a version, 12080, as people write it."""
    return f"{number // 1000}.{number % 1000 // 10}"
