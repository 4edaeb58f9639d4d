"""The GPU backend: CUDA C++ in kernels/, launched through CuPy on its current stream.

The functions have the names, arguments, dtypes and results of ``adamas_core.reference``, on CuPy's
arrays. CuPy is imported at the first call, not before.
"""

from __future__ import annotations

from typing import Any

from . import _launch
from ._available import why_not
from .attend import attend
from .center import encode_centered
from .decode_step import DecodeStep, DeviceCache, device_cache, fill
from .hadamard import hadamard
from .quantize import encode, encode_query, quantize, quantize_query
from .rerank import rerank
from .score import score
from .select import attend_topk, select_topk
from .tail import attend_tail
from .topk import topk
from .values import encode_values

__all__ = [
    "DecodeStep",
    "DeviceCache",
    "array_module",
    "attend",
    "attend_tail",
    "attend_topk",
    "current_device",
    "device_cache",
    "encode",
    "encode_centered",
    "encode_query",
    "encode_values",
    "fill",
    "hadamard",
    "quantize",
    "quantize_query",
    "rerank",
    "score",
    "select_topk",
    "topk",
    "why_not",
]


def array_module() -> Any:
    """CuPy; RuntimeError with the reason if it cannot be used."""
    return _launch.device().xp


def current_device() -> int:
    """The number of CuPy's current device; RuntimeError as for `array_module`."""
    return _launch.device().number()
