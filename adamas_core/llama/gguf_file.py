"""Open a GGUF file, which holds a model, a tokenizer, or both.

The reader of the `gguf` package makes an object for each number of a file, as many as the file
asks for. This one makes an array for a list of numbers. It compares each count with the size of
the file before it reads. So a damaged count costs neither time nor memory.
"""

from __future__ import annotations

import math
import mmap
import struct
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..extra import needs_extra
from .files import regular
from .settings import CheckpointError, Settings

VERSIONS = (2, 3)
MAX_AXES = 4
MAX_NAME = 2**16 - 1  # bytes, by the format
BOOL, STRING, ARRAY = 7, 8, 9
NUMBERS = {0: "u1", 1: "i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4", 6: "<f4", BOOL: "u1"}
NUMBERS |= {10: "<u8", 11: "<i8", 12: "<f8"}


def is_gguf(path: Path) -> bool:
    """Whether a file begins with the mark of GGUF."""
    with regular(path).open("rb") as file:
        return file.read(4) == b"GGUF"


@dataclass(frozen=True)
class GgufTensor:
    """A tensor in a GGUF file."""

    name: str
    shape: tuple[int, ...]  # the format's order: the first axis is the fastest
    tensor_type: Any  # gguf.GGMLQuantizationType
    data: NDArray[np.uint8]  # (rows, bytes of a row), a part of the mapped file


class GgufFile:
    """The metadata and the tensors of a mapped file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with regular(path).open("rb") as file:
            if file.read(4) != b"GGUF":
                raise CheckpointError(f"{path}: not a GGUF file")
            self._data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        cursor = _Cursor(path, self._data, at=4)
        version = cursor.number("<u4", "the version")
        if version not in VERSIONS:
            raise CheckpointError(
                f"{path}: GGUF version {version} is not 2 or 3, or the file is big-endian"
            )
        tensors = cursor.number("<u8", "the number of tensors")
        entries = cursor.number("<u8", "the number of metadata entries")
        self._raw: dict[str, Any] = {}
        for i in range(entries):
            name = cursor.name(f"the name of metadata entry {i}")
            if name in self._raw:
                raise CheckpointError(f"{path}: damaged: {name} is there twice")
            self._raw[name] = cursor.value(cursor.number("<u4", name), name)
        self._infos = [cursor.tensor(i) for i in range(tensors)]
        self._end_of_infos = cursor.at

    def lookup(self, name: str) -> Any:
        """The value of a metadata entry, or None."""
        raw = self._raw.get(name)
        try:
            if isinstance(raw, bytes):
                return raw.decode()
            if isinstance(raw, list):
                return [text.decode() for text in raw]
        except UnicodeDecodeError as error:
            raise CheckpointError(f"{self.path}: {name} is damaged: {error}") from error
        return raw.tolist() if isinstance(raw, np.ndarray) else raw

    @cached_property
    def tensors(self) -> list[GgufTensor]:
        """All tensors. Each lies in the file, and no two share a byte."""
        align = Settings(self.path, self.lookup).get("general.alignment", int, 32)
        if align < 1 or align & (align - 1):
            raise CheckpointError(
                f"{self.path}: general.alignment is {align}, expected a power of two"
            )
        start = -(-self._end_of_infos // align) * align
        places = [self._place(start, *info) for info in self._infos]
        taken = sorted(place[:3] for place in places if place[0] < place[1])
        for (_, end, one), (begin, _, other) in pairwise(taken):
            if begin < end:
                raise CheckpointError(f"{self.path}: damaged: tensors {one} and {other} overlap")
        if len({info[0] for info in self._infos}) < len(self._infos):
            raise CheckpointError(f"{self.path}: damaged: two tensors have the same name")
        data = np.frombuffer(self._data, np.uint8)
        return [
            GgufTensor(name, shape, kind, data[begin:end].reshape(math.prod(shape[1:]), -1))
            for begin, end, name, shape, kind in places
        ]

    def _place(
        self, start: int, name: str, shape: tuple[int, ...], number: int, offset: int
    ) -> tuple[int, int, str, tuple[int, ...], Any]:
        """First byte, end, name, shape and type of a tensor whose data begin at start + offset."""
        gguf = needs_extra("gguf")
        try:
            kind = gguf.GGMLQuantizationType(number)
        except ValueError:
            raise CheckpointError(
                f"{self.path}: tensor {name} has type {number}, which the gguf package lacks"
            ) from None
        block, size = gguf.GGML_QUANT_SIZES[kind]
        if min(shape) < 1 or shape[0] % block:
            raise CheckpointError(
                f"{self.path}: tensor {name} has shape {shape[::-1]}, expected rows of a "
                f"multiple of {block} values, and no axis of 0"
            )
        begin = start + offset
        end = begin + math.prod(shape) // block * size
        if end > len(self._data):
            raise CheckpointError(
                f"{self.path}: cut short, or damaged: tensor {name} ends at byte {end}, and the "
                f"file at {len(self._data)}"
            )
        return begin, end, name, shape, kind


@dataclass
class _Cursor:
    """Reads one value after the other, and never past the end of the file."""

    path: Path
    data: mmap.mmap
    at: int

    def take(self, count: int, size: int, what: str) -> int:
        """The place of `count` items of `size` bytes; the cursor moves past them."""
        left = len(self.data) - self.at
        if count * size > left:
            raise CheckpointError(
                f"{self.path}: cut short, or damaged: {what} needs {count * size} bytes at byte "
                f"{self.at}, and {left} are left"
            )
        self.at += count * size
        return self.at - count * size

    def number(self, code: str, what: str) -> int:
        size = np.dtype(code).itemsize
        place = self.take(1, size, what)
        return int.from_bytes(self.data[place : place + size], "little")

    def text(self, what: str) -> bytes:
        size = self.number("<u8", what)
        place = self.take(size, 1, what)
        return self.data[place : place + size]

    def name(self, what: str) -> str:
        size = int.from_bytes(self.data[self.at : self.at + 8], "little")
        if size > MAX_NAME:
            raise CheckpointError(
                f"{self.path}: damaged: {what} is {size} bytes long, expected at most {MAX_NAME}"
            )
        try:
            return self.text(what).decode()
        except UnicodeDecodeError as error:
            raise CheckpointError(f"{self.path}: damaged: {what}: {error}") from error

    def value(self, kind: int, name: str) -> Any:
        """A value of the metadata. Strings are bytes still, and lists of numbers are arrays."""
        if kind == STRING:
            return self.text(name)
        if kind == ARRAY:
            kind, count = self.number("<u4", name), self.number("<u8", name)
            if kind == STRING:
                return self.texts(count, name)
            return self.numbers(kind, count, name)
        return self.numbers(kind, 1, name)[0].item()

    def numbers(self, kind: int, count: int, name: str) -> NDArray[Any]:
        if kind not in NUMBERS:
            raise CheckpointError(f"{self.path}: {name} is of type {kind}, which is not supported")
        dtype = np.dtype(NUMBERS[kind])
        place = self.take(count, dtype.itemsize, name)
        values = np.frombuffer(self.data, np.uint8, count * dtype.itemsize, place)
        return values != 0 if kind == BOOL else values.view(dtype)

    def texts(self, count: int, name: str) -> list[bytes]:
        self.at = self.take(count, 8, name)  # at least their lengths must fit
        data, at, length = self.data, self.at, struct.Struct("<Q")
        texts = []
        try:
            for _ in range(count):
                (size,) = length.unpack_from(data, at)
                at += 8 + size
                texts.append(data[at - size : at])
        except (struct.error, OverflowError):
            at = len(data) + 1
        if at > len(data):
            raise CheckpointError(
                f"{self.path}: cut short, or damaged: {name} ends after the end of the file"
            )
        self.at = at
        return texts

    def tensor(self, i: int) -> tuple[str, tuple[int, ...], int, int]:
        """Name, shape, number of the type, and offset of the data."""
        name = self.name(f"the name of tensor {i}")
        axes = self.number("<u4", f"tensor {name}")
        if not 1 <= axes <= MAX_AXES:
            raise CheckpointError(
                f"{self.path}: tensor {name} has {axes} axes, expected 1 to {MAX_AXES}"
            )
        shape = tuple(self.number("<u8", f"tensor {name}") for _ in range(axes))
        return name, shape, self.number("<u4", name), self.number("<u8", name)


def open_gguf(path: Path) -> tuple[GgufFile, Settings]:
    """A GGUF file, and its metadata as settings."""
    file = GgufFile(path)
    settings = Settings(path, file.lookup)
    return file, settings
