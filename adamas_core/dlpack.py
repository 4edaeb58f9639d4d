"""DLPack where NumPy and CuPy fall short: bfloat16, names of other dtypes, and bare producers.

A producer is an object with ``__dlpack__`` and ``__dlpack_device__``. Its capsule points to a
struct, which says where the memory is and what it holds. NumPy and CuPy read all of it: strides,
offsets, the flag of read-only memory, and the deleter, which they call once, after the last view is
gone. But they refuse a capsule of bfloat16. So `Words` gives them a capsule in which each bfloat16
is a uint16, and `Bfloat16` gives a library a capsule of uint16 in which each is a bfloat16. Both
change only the dtype in the capsule's own struct.
"""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np

# Device types of dlpack.h, by the names that errors show.
CPU, CUDA = 1, 2
HOST = {CPU: "cpu", 3: "cuda-host", 11: "rocm-host"}  # memory that the CPU reads as its own
DEVICES = {
    **HOST,
    CUDA: "cuda",
    4: "opencl",
    7: "vulkan",
    8: "metal",
    9: "vpi",
    10: "rocm",
    12: "ext",
    13: "cuda-managed",
    14: "oneapi",
    15: "webgpu",
    16: "hexagon",
    17: "maia",
    18: "trainium",
}

# Codes of dtypes in dlpack.h.
UINT, BFLOAT = 1, 4
_NUMBERS = {0: "int", UINT: "uint", 2: "float", 5: "complex"}  # with a number of bits
_NAMES = {
    3: "opaque",
    BFLOAT: "bfloat16",
    6: "bool",
    7: "float8_e3m4",
    8: "float8_e4m3",
    9: "float8_e4m3b11fnuz",
    10: "float8_e4m3fn",
    11: "float8_e4m3fnuz",
    12: "float8_e5m2",
    13: "float8_e5m2fnuz",
    14: "float8_e8m0fnu",
    15: "float6_e2m3fn",
    16: "float6_e3m2fn",
    17: "float4_e2m1fn",
}

# The dtypes of DLPack that NumPy has, by their names in NumPy.
NUMPY = frozenset(
    {f"{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64)}
    | {"bool", "float16", "float32", "float64", "complex64", "complex128"}
)

_FLOATS = "float16, bfloat16, float32, or one that NumPy has"


class Tensor(ctypes.Structure):
    """DLTensor of dlpack.h."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device", ctypes.c_int32 * 2),  # type, number
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )

    @property
    def dtype(self) -> str:
        """The name of the dtype, as NumPy and ml_dtypes spell it."""
        code = self.code
        kind = _NUMBERS.get(code)
        name = _NAMES.get(code, f"dtype code {code}") if kind is None else f"{kind}{self.bits}"
        return name if self.lanes == 1 else f"{name} x {self.lanes}"

    @property
    def sizes(self) -> tuple[int, ...]:
        """The shape."""
        return tuple(self.shape[: self.ndim]) if self.ndim else ()


# The names of capsules. A plain struct begins with the tensor. A versioned one begins with its
# version, of which the major number is the first 4 bytes, a context, the deleter and flags: 8 bytes
# each.
_PLAIN, _VERSIONED, _BEFORE_TENSOR, _MAJOR = b"dltensor", b"dltensor_versioned", 32, 1

# By index each function is an object of its own. As an attribute it would be shared with all others
# in the process, who may give it other types.
_is_valid = ctypes.pythonapi["PyCapsule_IsValid"]
_is_valid.argtypes, _is_valid.restype = (ctypes.py_object, ctypes.c_char_p), ctypes.c_int
_pointer = ctypes.pythonapi["PyCapsule_GetPointer"]
_pointer.argtypes, _pointer.restype = (ctypes.py_object, ctypes.c_char_p), ctypes.c_void_p


def tensor_of(capsule: object) -> Tensor:
    """The tensor of a capsule that nobody has taken. It may be read while the capsule lives."""
    if _is_valid(capsule, _PLAIN):
        return Tensor.from_address(_pointer(capsule, _PLAIN))
    if _is_valid(capsule, _VERSIONED):
        address = _pointer(capsule, _VERSIONED)
        major = ctypes.c_uint32.from_address(address).value
        if major == _MAJOR:
            return Tensor.from_address(address + _BEFORE_TENSOR)
        raise Unreadable(f"comes by DLPack {major}; expected DLPack {_MAJOR}")
    raise Unreadable(f"comes as {capsule!r}; expected a capsule of DLPack that is not used yet")


class Unreadable(Exception):
    """A producer whose array no backend can read. NumPy hides a TypeError of ``__dlpack__``."""


class Words:
    """A producer's array, in which each bfloat16 is a uint16.

    `dtype` is the dtype that the producer gave, once the array was taken.
    """

    def __init__(self, producer: Any) -> None:
        self._producer = producer
        self.dtype = ""

    def __dlpack_device__(self) -> Any:
        return self._producer.__dlpack_device__()

    def __dlpack__(self, **options: Any) -> Any:
        try:
            capsule = self._producer.__dlpack__(**options)
        except TypeError:  # an old producer knows no option but the stream
            stream = {key: x for key, x in options.items() if key == "stream" and x is not None}
            capsule = self._producer.__dlpack__(**stream)
        tensor = tensor_of(capsule)
        self.dtype = tensor.dtype
        if self.dtype == "bfloat16":
            tensor.code = UINT
        elif self.dtype not in NUMPY:
            raise Unreadable(f"is {self.dtype} {tensor.sizes}; expected dtype {_FLOATS}")
        return capsule


class Bfloat16:
    """A producer of bfloat16, from an array of NumPy or CuPy with that dtype."""

    def __init__(self, x: Any) -> None:
        self._words = x.view(np.uint16)

    def __dlpack_device__(self) -> Any:
        return self._words.__dlpack_device__()

    def __dlpack__(self, **options: Any) -> Any:
        capsule = self._words.__dlpack__(**options)
        tensor_of(capsule).code = BFLOAT
        return capsule
