"""Which backend an array belongs to, found from the array's own type.

Nothing here imports a library that the caller has not imported, and nothing copies an array to
another device. NumPy arrays are used as they are; whatever else speaks DLPack and lies in the
memory of the CPU goes in as a view, and results go back in the library that it came from.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib import import_module
from types import ModuleType
from typing import Any

import array_api_compat as api
import numpy as np

# One of a caller's arrays, of any library.
Array = Any

BACKENDS = ("cpu", "reference")

# Device types of DLPack's dlpack.h that an error should name.
_CPU, _CUDA = 1, 2
_DEVICES = {_CPU: "cpu", _CUDA: "cuda", 3: "cuda-host", 8: "metal", 10: "rocm", 14: "oneapi"}


def load(backend: str) -> ModuleType:
    """The module of a backend by its name."""
    if backend not in BACKENDS:
        raise ValueError(f"backend={backend!r}: expected one of {', '.join(map(repr, BACKENDS))}")
    return import_module(f"adamas_core.{backend}")


def numpy_views(**arrays: Array) -> list[np.ndarray[Any, Any]]:
    """The arrays as NumPy sees them, without a copy; the keywords are their names in errors."""
    return [x if type(x) is np.ndarray else _view(name, x) for name, x in arrays.items()]


def int_or_view(name: str, value: int | Array) -> Any:
    """A count: a number as it is, an array as NumPy sees it."""
    return value if isinstance(value, (int, np.integer)) else numpy_views(**{name: value})[0]


def returner(like: Array) -> Callable[[np.ndarray[Any, Any]], Array]:
    """A function that hands a NumPy result back in the library of the array `like`."""
    if isinstance(like, np.ndarray):
        return lambda result: result
    xp = api.array_namespace(like)

    def give(result: np.ndarray[Any, Any]) -> Array:
        if result.dtype.name == "bfloat16":  # NumPy does not export it through DLPack
            if api.is_torch_array(like):
                return xp.from_dlpack(result.view(np.int16)).view(xp.bfloat16)
            return xp.asarray(result)
        given = xp.from_dlpack(result)
        if given.dtype != getattr(xp, result.dtype.name):
            raise TypeError(
                f"{xp.__name__} turned a result of dtype {result.dtype} into {given.dtype}; "
                "64-bit integers have to be enabled in it (JAX: jax_enable_x64)"
            )
        return given

    return give


def _view(name: str, x: Array) -> np.ndarray[Any, Any]:
    if isinstance(x, np.ndarray):
        return x.view(np.ndarray)
    if not hasattr(x, "__dlpack_device__"):
        raise TypeError(
            f"{name} is a {type(x).__module__}.{type(x).__qualname__}; expected an array of NumPy "
            "or of a library that speaks DLPack"
        )
    try:
        device, number = x.__dlpack_device__()
        where = f"{_DEVICES.get(int(device), f'DLPack device type {int(device)}')}:{number}"
    except (ValueError, BufferError, RuntimeError):  # a device without memory, as torch's meta
        device, where = None, str(x.device)
    if device != _CPU:
        reason = ""
        if device == _CUDA:
            from .gpu import why_not

            reason = f" {why_not() or 'adamas_core.gpu has the same functions for CuPy arrays'}"
        raise ValueError(
            f"{name} lies on device {where} with shape {tuple(x.shape)} and dtype {x.dtype}; "
            f"expected the CPU's memory, and no array is copied between devices.{reason}"
        )
    if api.is_torch_array(x):
        x = x.detach()
    if str(x.dtype).rpartition(".")[2] != "bfloat16":
        return np.from_dlpack(x)
    if api.is_torch_array(x):
        return np.from_dlpack(x.view(api.array_namespace(x).int16)).view(bfloat16(name))
    return np.asarray(x)


def bfloat16(name: str) -> np.dtype[Any]:
    """NumPy's bfloat16, which ml_dtypes defines; asked for only where the caller's data has it."""
    if "ml_dtypes" not in sys.modules:
        try:
            import_module("ml_dtypes")
        except ImportError:
            raise TypeError(
                f"{name} has dtype bfloat16, which NumPy knows only with ml_dtypes: "
                "pip install ml_dtypes"
            ) from None
    dtype: np.dtype[Any] = np.dtype(sys.modules["ml_dtypes"].bfloat16)
    return dtype
