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

import sys
from collections.abc import Callable
from functools import cache
from importlib import import_module
from types import ModuleType
from typing import Any

import array_api_compat as api
import numpy as np

from . import checks
from .dlpack import CUDA, DEVICES, HOST, NUMPY, Bfloat16, Unreadable, Words

# One of a caller's arrays, of any library.
Array = Any

# Each backend, and the kind of device that its arrays are on.
BACKENDS = {"cpu": "cpu", "gpu": "cuda", "reference": "cpu"}

# The backend of NumPy's arrays.
DEFAULT_BACKEND = "cpu"


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
    if isinstance(value, (list, tuple)):
        try:
            value = np.asarray(value)
        except ValueError:
            raise ValueError(
                f"{name}={value!r}; expected an integer, or rows of integers of equal lengths"
            ) from None
    return int_or_view(name, value)


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
    """A function that gives a backend's result back in the library of the array `like`.

    A library that has no namespace of arrays, as TensorFlow, gets the arrays of the backend.
    """
    if isinstance(like, np.ndarray):
        return lambda result: result
    try:
        xp = api.array_namespace(like)
    except TypeError:
        return lambda result: result

    def give(result: Array) -> Array:
        if isinstance(result, type(like)):
            return result
        if result.dtype.name == "bfloat16":
            if api.is_torch_array(like):
                return xp.from_dlpack(result.view(np.int16)).view(xp.bfloat16)
            return xp.from_dlpack(Bfloat16(result))
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
    _no_tracer(name, x)
    if not hasattr(x, "__dlpack_device__"):
        raise TypeError(
            f"{name} is a {_kind(x)}; expected an array of NumPy or of a library that speaks DLPack"
        )
    try:
        device, number = x.__dlpack_device__()
        where = f"{DEVICES.get(int(device), f'DLPack device type {int(device)}')}:{number}"
    except (ValueError, BufferError, RuntimeError) as error:  # no memory, as torch's meta
        device, where = None, str(getattr(x, "device", error))
    if device == CUDA:
        xp = _cupy(_told(name, x, where), number)
        if isinstance(x, xp.ndarray):
            return x
    elif device in HOST:
        xp = np
    else:
        raise ValueError(
            f"{_told(name, x, where)}; expected the memory of the CPU or of a CUDA device, and no "
            "array is copied between devices"
        )
    dtype = str(getattr(x, "dtype", "")).rpartition(".")[2]
    if api.is_torch_array(x):
        x = x.detach()
        if dtype == "bfloat16":
            return xp.from_dlpack(x.view(api.array_namespace(x).int16)).view(bfloat16(name))
    try:
        if dtype in NUMPY:
            return xp.from_dlpack(x)
        words = Words(x)  # the dtype is one that NumPy lacks, or only the capsule tells it
        view = xp.from_dlpack(words)
    except Unreadable as reason:
        raise TypeError(f"{name} {reason}") from None
    except (BufferError, RuntimeError) as reason:
        raise ValueError(f"{_told(name, x, where)}, and cannot be read: {reason}") from reason
    return view.view(bfloat16(name)) if words.dtype == "bfloat16" else view


def _kind(x: Array) -> str:
    """The full name of an object's class."""
    return f"{type(x).__module__}.{type(x).__qualname__}"


def _told(name: str, x: Array, where: str) -> str:
    """An array and its device, as errors show them. A bare producer has no shape and no dtype."""
    if not (hasattr(x, "shape") and hasattr(x, "dtype")):
        return f"{name}, a {_kind(x)}, lies on device {where}"
    return f"{name} lies on device {where} with shape {tuple(x.shape)} and dtype {x.dtype}"


def _no_tracer(name: str, x: Array) -> None:
    """Reject an array that stands for others while a function is traced: it has no memory."""
    jax, torch = sys.modules.get("jax"), sys.modules.get("torch")
    if jax is not None and isinstance(x, jax.core.Tracer):
        raise TypeError(
            f"{name} is traced by JAX, as inside jit, vmap, scan or grad: {x.aval.str_short()}; "
            "expected an array with numbers; adamas_core.jax has functions for traced arrays"
        )
    if torch is not None and isinstance(x, torch.Tensor):
        functorch = getattr(torch._C, "_functorch", None)
        if functorch is not None and functorch.is_functorch_wrapped_tensor(x):
            raise TypeError(
                f"{name} is a tensor inside torch.vmap or another transform of torch.func; "
                "expected a tensor outside of it: many sequences go in as the first axis, B"
            )


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
