"""Which backend an array belongs to, found from the array's own type.

- Nothing here imports a library that the caller's arrays do not need.
- Nothing here copies an array to another device.
- NumPy's arrays, and CuPy's arrays on a CUDA device, are used directly. Arrays of any other library
  that speaks DLPack are used as views, on their own device. Results go back in the same library.

On a CUDA device everything runs on CuPy's current stream. DLPack orders the two libraries: CuPy's
stream waits for the work that the caller's library has queued on its current stream, and that
stream waits for the result. If a call returns no array, as `KVCache.append`, keep its inputs alive
until CuPy's stream has read them, or let both libraries use one stream.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from importlib import import_module
from types import ModuleType
from typing import Any

import array_api_compat as api
import numpy as np

from . import checks

# One of a caller's arrays, of any library.
Array = Any

# Each backend, and the kind of device that its arrays are on.
BACKENDS = {"cpu": "cpu", "gpu": "cuda", "reference": "cpu"}

# The backend of NumPy's arrays.
DEFAULT_BACKEND = "cpu"

# Device types of dlpack.h, by the names that errors show.
_CPU, _CUDA = 1, 2
_DEVICES = {_CPU: "cpu", _CUDA: "cuda", 3: "cuda-host", 8: "metal", 10: "rocm", 14: "oneapi"}


def load(backend: str) -> ModuleType:
    """The module of a backend by its name; a RuntimeError says why the GPU backend cannot run."""
    if backend not in BACKENDS:
        raise ValueError(f"backend={backend!r}; expected one of {', '.join(map(repr, BACKENDS))}")
    home = _module(backend)
    if backend == "gpu":
        home.array_module()
    return home


@cache
def _module(backend: str) -> ModuleType:
    return import_module(f"adamas_core.{backend}")


def backend_of(view: Array) -> str:
    """The backend that computes one of `views`."""
    return DEFAULT_BACKEND if isinstance(view, np.ndarray) else "gpu"


def array_module(backend: str) -> Any:
    """The array library of a backend: NumPy, or CuPy."""
    return load(backend).array_module() if backend == "gpu" else np


def views(**arrays: Array) -> list[Any]:
    """The arrays as NumPy's, or on a GPU as CuPy's, without a copy. All must be on one device.

    The keywords are the names that errors show.
    """
    seen = [x if type(x) is np.ndarray else _view(name, x) for name, x in arrays.items()]
    if len({type(x) for x in seen}) > 1 and len({checks.device(x) for x in seen}) > 1:
        raise ValueError(
            "; ".join(
                f"{checks.shown(name, x)} on {checks.device(x)}"
                for name, x in zip(arrays, seen, strict=True)
            )
            + "; expected one device, and no array is copied between devices"
        )
    return seen


def int_or_view(name: str, value: int | Array) -> Any:
    """A count: a number stays a number, an array becomes one of NumPy on the host."""
    if isinstance(value, (int, np.integer)):
        return value
    if not hasattr(value, "__dlpack_device__"):
        raise TypeError(f"{name}={value!r}; expected an integer or an array of integers")
    return on_host(views(**{name: value})[0])


def int_or_view_or_row(name: str, value: Any) -> Any:
    """As `int_or_view`; several numbers in a list or tuple become an array too."""
    return int_or_view(name, np.asarray(value) if isinstance(value, (list, tuple)) else value)


def on_host(view: Array) -> np.ndarray[Any, Any]:
    """One of `views` in the memory of the CPU; an array on a GPU is fetched, after a wait."""
    return view if isinstance(view, np.ndarray) else view.get()


def on_host_thresholds(where: str, thresholds: Any) -> np.ndarray[Any, Any]:
    """Thresholds on the host in float32, from numbers or from an array of any real dtype."""
    if isinstance(thresholds, (list, tuple)):
        try:
            x = np.asarray(thresholds)
        except ValueError:
            raise ValueError(
                f"{where}: thresholds={thresholds}; expected three numbers, or three per head"
            ) from None
    else:
        x = on_host(views(thresholds=thresholds)[0])
    checks.real_array(where, "thresholds", x)
    with np.errstate(over="ignore"):  # they become infinite, and `checks.thresholds` says so
        return x.astype(np.float32)


def returner(like: Array) -> Callable[[Array], Array]:
    """A function that gives a backend's result back in the library of the array `like`."""
    if isinstance(like, np.ndarray):
        return lambda result: result
    xp = api.array_namespace(like)

    def give(result: Array) -> Array:
        if isinstance(result, type(like)):
            return result
        if result.dtype.name == "bfloat16":
            if api.is_torch_array(like):
                return xp.from_dlpack(result.view(np.int16)).view(xp.bfloat16)
            if isinstance(result, np.ndarray):  # which does not export it through DLPack
                return xp.asarray(result)
        given = xp.from_dlpack(result)
        if given.dtype != getattr(xp, result.dtype.name):
            raise TypeError(
                f"{xp.__name__} turned a result of dtype {result.dtype} into {given.dtype}; "
                "expected 64-bit integers to be enabled (JAX: jax_enable_x64)"
            )
        return given

    return give


def _view(name: str, x: Array) -> Any:
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
    told = f"{name} lies on device {where} with shape {tuple(x.shape)} and dtype {x.dtype}"
    if device == _CUDA:
        xp = _cupy(told, number)
        if isinstance(x, xp.ndarray):
            return x
    elif device == _CPU:
        xp = np
    else:
        raise ValueError(
            f"{told}; expected the memory of the CPU or of a CUDA device, and no array is copied "
            "between devices"
        )
    if api.is_torch_array(x):
        x = x.detach()
    if str(x.dtype).rpartition(".")[2] == "bfloat16":
        if api.is_torch_array(x):
            return xp.from_dlpack(x.view(api.array_namespace(x).int16)).view(bfloat16(name))
        if xp is np:
            return np.asarray(x)
    return xp.from_dlpack(x)


def _cupy(told: str, number: int) -> Any:
    """CuPy, for an array on CuPy's current device; an error for one on another device."""
    gpu = import_module("adamas_core.gpu")
    try:
        current = gpu.current_device()
    except RuntimeError as reason:
        raise RuntimeError(f"{told}, and the GPU backend cannot be used: {reason}") from None
    if number != current:
        raise ValueError(
            f"{told}; expected cuda:{current}, CuPy's current device: call it inside "
            f"cupy.cuda.Device({number})"
        )
    return gpu.array_module()


def bfloat16(name: str) -> np.dtype[Any]:
    """NumPy's bfloat16, from ml_dtypes; imported only where the caller's data has that dtype."""
    try:
        dtype: np.dtype[Any] = np.dtype(import_module("ml_dtypes").bfloat16)
    except ImportError:
        raise TypeError(
            f"{name} has dtype bfloat16, which NumPy knows only with ml_dtypes: "
            "pip install ml_dtypes"
        ) from None
    return dtype
