"""Producers of DLPack, made by hand, so that a test can choose every field of their structs."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np

from adamas_core.dlpack import Tensor

_Deleter = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
_Destructor = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
_CODES = {"i": 0, "u": 1, "f": 2, "c": 5, "b": 6}

_alive: list[Any] = []  # the structs of all producers, which live until the process ends

_api = ctypes.pythonapi
_new_capsule = _api["PyCapsule_New"]  # JAX gives the shared one other types
_new_capsule.restype = ctypes.py_object
_new_capsule.argtypes = (ctypes.c_void_p, ctypes.c_char_p, _Destructor)


class _Plain(ctypes.Structure):
    _fields_ = (("tensor", Tensor), ("context", ctypes.c_void_p), ("deleter", _Deleter))


class _Versioned(ctypes.Structure):
    _fields_ = (
        ("major", ctypes.c_uint32),
        ("minor", ctypes.c_uint32),
        ("context", ctypes.c_void_p),
        ("deleter", _Deleter),
        ("flags", ctypes.c_uint64),
        ("tensor", Tensor),
    )


class Producer:
    """An array of NumPy as a library without a Python interface shows it.

    It has the two methods of DLPack and nothing else. `fields` change those of the tensor, as
    ``code=10, bits=8``. `deleted` counts the calls of the deleters, and `taken` the capsules.
    """

    def __init__(
        self,
        x: np.ndarray[Any, Any],
        version: tuple[int, int] | None = (1, 0),
        device: tuple[int, int] = (1, 0),
        flags: int = 0,
        **fields: Any,
    ) -> None:
        self._x, self._version, self._device, self._flags = x, version, device, flags
        self._fields = fields
        self.deleted = 0
        self.taken = 0

    def __dlpack_device__(self) -> tuple[int, int]:
        return self._device

    def __dlpack__(self, **options: Any) -> object:
        if self._version is None and set(options) - {"stream"}:
            raise TypeError("__dlpack__() got an unexpected keyword argument")
        x = self._x
        sizes = (ctypes.c_int64 * max(x.ndim, 1))(*x.shape)
        steps = (ctypes.c_int64 * max(x.ndim, 1))(*(n // x.itemsize for n in x.strides))
        pointer = ctypes.POINTER(ctypes.c_int64)
        tensor = Tensor(
            data=x.__array_interface__["data"][0],
            device=(ctypes.c_int32 * 2)(*self._device),
            ndim=x.ndim,
            code=_CODES.get(x.dtype.kind, 4),
            bits=8 * x.itemsize,
            lanes=1,
            shape=ctypes.cast(sizes, pointer),
            strides=ctypes.cast(steps, pointer),
        )
        for name, value in self._fields.items():
            setattr(tensor, name, value)
        deleter = _Deleter(self._delete)
        if self._version is None:
            struct: Any = _Plain(tensor=tensor, deleter=deleter)
            name = b"dltensor"
        else:
            major, minor = self._version
            struct = _Versioned(
                major=major, minor=minor, deleter=deleter, flags=self._flags, tensor=tensor
            )
            name = b"dltensor_versioned"
        _alive.extend([struct, sizes, steps, deleter])
        self.taken += 1
        address = ctypes.addressof(struct)
        return _new_capsule(address, name, _destructors[name])

    def _delete(self, _: int) -> None:
        self.deleted += 1


def _destructor(name: bytes, struct: type[Any]) -> Any:
    """What a producer's capsule does when it dies: if nobody took the array, it is deleted."""

    def destroy(capsule: int) -> None:
        valid, pointer = _api["PyCapsule_IsValid"], _api["PyCapsule_GetPointer"]
        valid.argtypes = (ctypes.c_void_p, ctypes.c_char_p)
        pointer.argtypes = (ctypes.c_void_p, ctypes.c_char_p)
        pointer.restype = ctypes.c_void_p
        if valid(capsule, name):
            address = pointer(capsule, name)
            struct.from_address(address).deleter(address)

    return _Destructor(destroy)


_destructors = {
    b"dltensor": _destructor(b"dltensor", _Plain),
    b"dltensor_versioned": _destructor(b"dltensor_versioned", _Versioned),
}
