"""A header and arrays in one checksummed file.

The layout: 8 bytes of magic, 4 bytes of version, 8 bytes of header size, the header in JSON, the
arrays one after another at multiples of 64 bytes, and a SHA-256 of everything before it. Integers
are little-endian.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import math
import os
import secrets
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from .dispatch import bfloat16, on_host
from .file_errors import naming

NDArray = np.ndarray[Any, Any]

MAGIC = b"ADAMASKV"
VERSION = 6
ALIGN = 64
MAX_HEADER = 16 << 20  # bytes; a model with 4096 layers needs 4 MB
BLOCK = 1 << 20  # bytes that are hashed at a time
DTYPES = ("float16", "bfloat16", "float32", "uint8", "uint64", "int64")
_FIXED = len(MAGIC) + 12  # magic, version, size of the header
_DIGEST = hashlib.sha256().digest_size


# ---- writing -----------------------------------------------------------------------------------


def write(path: Path, header: Mapping[str, Any], arrays: Mapping[str, Any]) -> None:
    """Write a file that appears whole or not at all: it is written beside `path`, then renamed.

    header must be fit for JSON. arrays may be views, on any device. An existing file keeps its mode
    and owner. The target of a symbolic link is written, and the link stays. An OSError names
    `path`.
    """
    with naming(path):
        _write(path, header, arrays)


def _write(path: Path, header: Mapping[str, Any], arrays: Mapping[str, Any]) -> None:
    target = Path(os.path.realpath(path))
    before = _existing(target)
    prefix = f".adamas-{hashlib.sha256(os.fsencode(target.name)).hexdigest()[:16]}-"
    remove_leftovers(target.parent, prefix)
    beside, file = _begin(target.parent, prefix, 0o666 if before is None else 0o600)
    try:
        with file:
            _write_all(file, header, arrays)
            file.flush()
            if before is not None:
                _keep_owner_and_mode(file.fileno(), before)
            os.fsync(file.fileno())
            os.replace(beside, target)  # the lock is held until it has its name
    except BaseException:
        beside.unlink(missing_ok=True)
        raise


def _existing(target: Path) -> os.stat_result | None:
    """The file that will be replaced; an OSError where it is not a file that can be."""
    try:
        found = target.stat()
    except FileNotFoundError:
        return None
    if stat.S_ISDIR(found.st_mode):
        raise IsADirectoryError(errno.EISDIR, "expected the path of a file")
    if not stat.S_ISREG(found.st_mode):
        raise OSError(errno.EINVAL, "a pipe, device or socket; expected the path of a regular file")
    if not os.access(target, os.W_OK):
        raise PermissionError(errno.EACCES, "the file there is write-protected")
    return found


def _begin(folder: Path, prefix: str, mode: int) -> tuple[Path, BinaryIO]:
    """A new file beside the target, locked for as long as it is open.

    `remove_leftovers` of another process may see the file before it is locked, and remove it. Then
    the name is gone, and another file is made.
    """
    while True:
        beside = folder / f"{prefix}{secrets.token_hex(8)}"
        file = os.fdopen(os.open(beside, os.O_CREAT | os.O_EXCL | os.O_WRONLY, mode), "wb")
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(file, fcntl.LOCK_EX)
        if os.fstat(file.fileno()).st_nlink:
            return beside, file
        file.close()


def remove_leftovers(folder: Path, prefix: str) -> None:
    """Remove files that killed processes left. A process that lives holds a lock on its own."""
    try:
        names = [entry.path for entry in os.scandir(folder) if entry.name.startswith(prefix)]
    except OSError:
        return  # the write says what is wrong with the folder
    for name in names:
        with contextlib.suppress(OSError), open(name, "rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.unlink(name)


def _keep_owner_and_mode(file: int, before: os.stat_result) -> None:
    now = os.fstat(file)
    if (now.st_uid, now.st_gid) != (before.st_uid, before.st_gid):
        os.fchown(file, before.st_uid, before.st_gid)
    os.fchmod(file, stat.S_IMODE(before.st_mode))


def _write_all(file: BinaryIO, header: Mapping[str, Any], arrays: Mapping[str, Any]) -> None:
    table, offset = {}, 0
    for name, x in arrays.items():
        table[name] = {"dtype": x.dtype.name, "shape": x.shape, "offset": offset}
        offset += _aligned(x.nbytes)
    text = json.dumps({**header, "arrays": table}).encode()
    text += b" " * (-(_FIXED + len(text)) % ALIGN)
    out = _HashingWriter(file)
    out.write(MAGIC + VERSION.to_bytes(4, "little") + len(text).to_bytes(8, "little"))
    out.write(text)
    for x in arrays.values():
        _write_array(out, x)
    file.write(out.digest())


def _write_array(out: _HashingWriter, x: Any) -> None:
    """The bytes of an array in C order, and zeros up to the next multiple of ALIGN."""
    # The keys of one head lie together in the cache's buffer, so most blocks need no copy.
    blocks = [x[i] for i in np.ndindex(x.shape[:2])] if x.ndim > 2 else [x]
    for block in blocks:
        whole = np.ascontiguousarray(on_host(block))
        out.write(whole.reshape(-1).view(np.uint8).data)
    out.write(b"\0" * (-x.nbytes % ALIGN))


def _aligned(nbytes: int) -> int:
    return -(-nbytes // ALIGN) * ALIGN


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


# ---- reading -----------------------------------------------------------------------------------


def read(path: str | os.PathLike[str]) -> tuple[dict[str, Any], dict[str, NDArray]]:
    """The header and the arrays of a file that `write` wrote.

    Each array has memory of its own. Together they are no larger than the file. A ValueError says
    if the file is not such a file, has another version, is cut or damaged, or if its header does
    not fit it.
    """
    name = os.fspath(path)
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        start = _check_whole(name, file, size)
        file.seek(_FIXED)
        header = _header(name, file.read(start - _FIXED))
        arrays = {}
        for key, dtype, shape in _table(name, header.pop("arrays", None), size - start - _DIGEST):
            x = np.empty(shape, dtype)
            if file.readinto(x.reshape(-1).view(np.uint8).data) != x.nbytes:
                raise ValueError(f"{name} is cut: it became shorter while it was read")
            file.seek(_aligned(x.nbytes) - x.nbytes, os.SEEK_CUR)
            arrays[key] = x
    return header, arrays


def _check_whole(name: str, file: BinaryIO, size: int) -> int:
    """Where the arrays start, after the checksum has been compared."""
    fixed = file.read(_FIXED)
    if fixed[: len(MAGIC)] != MAGIC:
        raise ValueError(f"{name} is not a KVCache file: it does not begin with {MAGIC!r}")
    if size < _FIXED + _DIGEST:
        raise ValueError(f"{name} is cut: it has {size} bytes, less than its fixed parts")
    version = int.from_bytes(fixed[len(MAGIC) : len(MAGIC) + 4], "little")
    if version != VERSION:
        raise ValueError(
            f"{name} has version {version}; expected version {VERSION}, the only one that this "
            "release reads"
        )
    hashed, left = hashlib.sha256(fixed), size - _FIXED - _DIGEST
    while left and (block := file.read(min(left, BLOCK))):
        hashed.update(block)
        left -= len(block)
    if left or file.read(_DIGEST) != hashed.digest():
        raise ValueError(f"{name} is cut or damaged: its checksum does not match its contents")
    length = int.from_bytes(fixed[-8:], "little")
    if length > min(MAX_HEADER, size - _FIXED - _DIGEST):
        raise ValueError(
            f"{name} has a header of {length} bytes, more than the file or {MAX_HEADER}"
        )
    return _FIXED + length


def _header(name: str, text: bytes) -> dict[str, Any]:
    try:
        header = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{name} has a header that is not JSON: {error}") from None
    if not isinstance(header, dict):
        raise ValueError(f"{name} has a header that is not a mapping")
    return header


def _table(name: str, table: object, room: int) -> list[tuple[str, np.dtype[Any], tuple[int, ...]]]:
    """(name, dtype, shape) of each array, after a check that they fill `room` bytes in order."""
    if not isinstance(table, dict):
        raise ValueError(f"{name} has no table of arrays in its header")
    found, end = [], 0
    for key, entry in table.items():
        told = f"{name} has an array {key!r} of {entry!r:.200}"
        if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "offset"}:
            raise ValueError(f"{told}; expected its dtype, shape and offset")
        shape = entry["shape"]
        if entry["dtype"] not in DTYPES:
            raise ValueError(f"{told}; expected a dtype of {', '.join(DTYPES)}")
        if not isinstance(shape, list) or len(shape) > 8 or not all(map(_is_size, shape)):
            raise ValueError(f"{told}; expected a shape of at most 8 sizes")
        dtype = bfloat16(key) if entry["dtype"] == "bfloat16" else np.dtype(entry["dtype"])
        if not _is_size(entry["offset"]) or entry["offset"] != end:
            raise ValueError(f"{told}; expected offset {end}, after the array before it")
        end += _aligned(math.prod(shape) * dtype.itemsize)
        if end > room:
            raise ValueError(f"{told}; expected at most the {room} bytes of arrays in the file")
        found.append((key, dtype, tuple(shape)))
    if end != room:
        raise ValueError(f"{name} has {room} bytes of arrays; expected {end}, as its header says")
    return found


def _is_size(value: object) -> bool:
    return type(value) is int and 0 <= value < 2**48
