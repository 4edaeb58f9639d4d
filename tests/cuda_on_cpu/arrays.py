"""A stand-in for CuPy where there is no GPU: arrays that compute with NumPy and behave like CuPy's.

They report a CUDA device. As CuPy's arrays do, they refuse to become NumPy arrays without .get(),
and to be used together with NumPy arrays. New arrays contain noise that no test expects.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np

CUDA = 2  # the device's type in DLPack
POISON = 0xA5


class DeviceArray(np.lib.mixins.NDArrayOperatorsMixin):
    """An array on the device. `host` is the NumPy array with its numbers."""

    device = SimpleNamespace(id=0)

    def __init__(self, host: np.ndarray[Any, Any]) -> None:
        self.host = host

    def __getattr__(self, name: str) -> Any:
        return on_device(getattr(self.host, name))

    @property
    def data(self) -> SimpleNamespace:
        return SimpleNamespace(ptr=self.host.__array_interface__["data"][0])

    @property
    def flags(self) -> SimpleNamespace:
        return SimpleNamespace(c_contiguous=self.host.flags.c_contiguous)

    def get(self) -> np.ndarray[Any, Any]:
        return self.host.copy()

    def __array__(self, *_: Any, **__: Any) -> Any:
        raise TypeError("Implicit conversion to a NumPy array is not allowed. Use .get()")

    def __array_namespace__(self, **_: Any) -> Any:
        return XP

    def __dlpack_device__(self) -> tuple[int, int]:
        return CUDA, 0

    def __dlpack__(self, **_: Any) -> np.ndarray[Any, Any]:
        return self.host

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **named: Any) -> Any:
        result = on_device(getattr(ufunc, method))(*inputs, **named)
        return named["out"][0] if "out" in named else result

    def __array_function__(self, function: Any, types: Any, inputs: Any, named: Any) -> Any:
        return on_device(function)(*inputs, **named)

    def __getitem__(self, key: Any) -> Any:
        return on_device(self.host[on_host(key)])

    def __setitem__(self, key: Any, value: Any) -> None:
        self.host[on_host(key)] = on_host(value)

    def __len__(self) -> int:
        return len(self.host)

    def __bool__(self) -> bool:
        return bool(self.host)

    def __int__(self) -> int:
        return int(self.host)

    def __index__(self) -> int:
        return operator.index(self.host)


def on_host(x: Any) -> Any:
    """Device arrays as NumPy arrays, in tuples and lists too. NumPy arrays are refused."""
    if isinstance(x, DeviceArray):
        return x.host
    if isinstance(x, np.ndarray):
        raise TypeError(f"Unsupported type {type(x)}")
    if isinstance(x, (tuple, list)):
        return type(x)(map(on_host, x))
    return x


def on_device(x: Any) -> Any:
    """NumPy arrays and scalars as device arrays, and functions as functions of device arrays."""
    if isinstance(x, (np.ndarray, np.generic)):
        return DeviceArray(np.asarray(x))
    if isinstance(x, tuple):
        return tuple(map(on_device, x))
    if callable(x) and not isinstance(x, type):
        return _of_device_arrays(x)
    return x


def _of_device_arrays(function: Callable[..., Any]) -> Callable[..., Any]:
    def call(*inputs: Any, **named: Any) -> Any:
        named = {name: on_host(x) for name, x in named.items()}
        return on_device(function(*on_host(inputs), **named))

    return call


class _Has:
    """A producer on the CPU that has a capsule already."""

    def __init__(self, capsule: Any) -> None:
        self._capsule = capsule

    def __dlpack_device__(self) -> tuple[int, int]:
        return 1, 0

    def __dlpack__(self) -> Any:
        return self._capsule


class Module:
    """CuPy's functions, from the NumPy functions with the same names."""

    __name__ = "cupy's stand-in"
    ndarray = DeviceArray

    def __getattr__(self, name: str) -> Any:
        return on_device(getattr(np, name))

    def empty(self, shape: Any, dtype: Any = np.float64) -> DeviceArray:
        x = np.empty(shape, dtype)
        if x.ndim:
            x.view(np.uint8).fill(POISON)
        return DeviceArray(x)

    def asarray(self, x: Any, dtype: Any = None, order: Any = None) -> DeviceArray:
        """A NumPy array is copied, because it is not on the device."""
        if isinstance(x, DeviceArray):
            return DeviceArray(np.asarray(x.host, dtype, order=order))
        return DeviceArray(np.array(x, dtype, order=order or "C"))

    def array(self, x: Any, dtype: Any = None, order: Any = None) -> DeviceArray:
        return self.asarray(x, dtype, order).copy()  # type: ignore[no-any-return]

    def from_dlpack(self, x: Any) -> DeviceArray:
        assert x.__dlpack_device__() == (CUDA, 0)
        given = x.__dlpack__(stream=1)
        return DeviceArray(given if isinstance(given, np.ndarray) else np.from_dlpack(_Has(given)))

    @property
    def random(self) -> Any:
        def default_rng(seed: int) -> Any:
            rng = np.random.default_rng(seed)
            return SimpleNamespace(standard_normal=on_device(rng.standard_normal))

        return SimpleNamespace(default_rng=default_rng)


XP = Module()
