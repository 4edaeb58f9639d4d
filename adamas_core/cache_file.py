"""A header and arrays in one checksummed file.

The layout: 8 bytes of magic, 4 bytes of version, 8 bytes of header size, the header in JSON, the
arrays at multiples of 64 bytes, and a SHA-256 of everything before it. Integers are little-endian.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from .dispatch import bfloat16, on_host

NDArray = np.ndarray[Any, Any]

MAGIC = b"ADAMASKV"
VERSION = 2
ALIGN = 64
_FIXED = len(MAGIC) + 12  # magic, version, size of the header
_DIGEST = hashlib.sha256().digest_size


def write(path: Path, header: Mapping[str, Any], arrays: Mapping[str, Any]) -> None:
    """Write a file that appears whole or not at all: it is written beside `path`, then renamed.

    header must be fit for JSON. arrays may be views, on any device.
    """
    table, offset = {}, 0
    for name, x in arrays.items():
        table[name] = {"dtype": x.dtype.name, "shape": x.shape, "offset": offset}
        offset += -(-x.nbytes // ALIGN) * ALIGN
    text = json.dumps({**header, "arrays": table}).encode()
    text += b" " * (-(_FIXED + len(text)) % ALIGN)
    beside = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}")
    try:
        with open(beside, "xb") as file:
            out = _HashingWriter(file)
            out.write(MAGIC + VERSION.to_bytes(4, "little") + len(text).to_bytes(8, "little"))
            out.write(text)
            for x in arrays.values():
                _write_array(out, x)
            file.write(out.digest())
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise


def _write_array(out: _HashingWriter, x: Any) -> None:
    """The bytes of an array in C order, and zeros up to the next multiple of ALIGN."""
    # The keys of one head lie together in the cache's buffer, so most blocks need no copy.
    blocks = [x[i] for i in np.ndindex(x.shape[:2])] if x.ndim > 2 else [x]
    for block in blocks:
        whole = np.ascontiguousarray(on_host(block))
        out.write(whole.reshape(-1).view(np.uint8).data)
    out.write(b"\0" * (-x.nbytes % ALIGN))


def read(path: str | os.PathLike[str]) -> tuple[dict[str, Any], dict[str, NDArray]]:
    """The header and the arrays of a file that `write` wrote.

    The arrays are views of one buffer in memory. A ValueError says if the file is not such a file,
    has another version, is cut or damaged.
    """
    raw = np.fromfile(path, np.uint8)
    header, start = _checked_header(os.fspath(path), raw)
    arrays = {}
    for name, entry in header.pop("arrays").items():
        dtype = bfloat16(name) if entry["dtype"] == "bfloat16" else np.dtype(entry["dtype"])
        nbytes = int(np.prod(entry["shape"])) * dtype.itemsize
        first = start + entry["offset"]
        arrays[name] = raw[first : first + nbytes].view(dtype).reshape(entry["shape"])
    return header, arrays


def _checked_header(path: str, raw: NDArray) -> tuple[dict[str, Any], int]:
    """The header, and where the arrays start, after the checksum has been compared."""
    if raw[: len(MAGIC)].tobytes() != MAGIC:
        raise ValueError(f"{path} is not a KVCache file: it does not begin with {MAGIC!r}")
    if len(raw) < _FIXED + _DIGEST:
        raise ValueError(f"{path} is cut: it has {len(raw)} bytes, less than its fixed parts")
    version = int.from_bytes(raw[len(MAGIC) : len(MAGIC) + 4].tobytes(), "little")
    if version != VERSION:
        raise ValueError(
            f"{path} has version {version}; expected version {VERSION}, the only one that this "
            "release reads"
        )
    if hashlib.sha256(raw[:-_DIGEST].data).digest() != raw[-_DIGEST:].tobytes():
        raise ValueError(f"{path} is cut or damaged: its checksum does not match its contents")
    size = int.from_bytes(raw[_FIXED - 8 : _FIXED].tobytes(), "little")
    header: dict[str, Any] = json.loads(raw[_FIXED : _FIXED + size].tobytes())
    return header, _FIXED + size


class _HashingWriter:
    """Writes bytes, and hashes everything that it has written."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._hash = hashlib.sha256()

    def write(self, data: Any) -> None:
        self._hash.update(data)
        self._file.write(data)

    def digest(self) -> bytes:
        return self._hash.digest()
