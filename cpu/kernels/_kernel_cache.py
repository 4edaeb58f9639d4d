"""Compiled kernels on disk.

A file is used if it is whole, and if it was made from the code that this process runs, by the same
versions for the same processor. Any other file is compiled anew and replaced. If no folder can be
written, each process compiles for itself.

The names are those of Numba's own cache: an index (.nbi) and the data (.nbc) of each kernel.
"""

from __future__ import annotations

import functools
import hashlib
import os
import pickle
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib.util import cache_from_source, find_spec
from pathlib import Path
from pkgutil import iter_modules
from types import CodeType
from typing import Any

import llvmlite
import numba
import numpy as np
from numba.core import config
from numba.core.caching import IndexDataCacheFile, _Cache
from numba.core.compiler import CompileResult
from numba.core.serialize import dumps

from adamas_core import reference

from .. import _array, _record, _records

_Base: Any = _Cache  # Numba has no types
_Files: Any = IndexDataCacheFile
_PACKAGES = (__package__, reference.__name__)
_HOST_MODULES = (_array.__name__, _record.__name__, _records.__name__)
_SEAL_BYTES = hashlib.sha256().digest_size
_LEFTOVER_SECONDS = 3600  # a file that is being written is younger


class KernelCache(_Base):  # type: ignore[misc]
    """The compiled code of one function, in the interface that Numba's dispatchers expect."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function

    @property
    def cache_path(self) -> str:
        return str(writable_folder() or "")

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        """The code for these types from the first folder that has it; otherwise say so: None."""
        target_context.refresh()
        key = self._key(sig, target_context.codegen())
        for folder in folders():
            found = self._files(folder).load(key)
            if found is not None:
                return CompileResult._rebuild(target_context, *found)
        announce()
        return None

    def save_overload(self, sig: Any, data: Any) -> None:
        """Save in the first folder that takes it, if any does."""
        key = self._key(sig, data.codegen)
        for folder in folders():
            try:
                folder.mkdir(parents=True, exist_ok=True)
                self._files(folder).save(key, data._reduce())
            except OSError:
                continue
            return

    def enable(self) -> None: ...

    def disable(self) -> None: ...

    def flush(self) -> None: ...

    def _files(self, folder: Path) -> _SealedFiles:
        code = self._function.__code__
        name = f"{Path(code.co_filename).stem}.{self._function.__qualname__}"
        base = Path(cache_from_source(f"{name.replace('<locals>.', '')}.py")).stem
        return _SealedFiles(str(folder), base, stamp() + fingerprint(code))

    def _key(self, sig: Any, codegen: Any) -> tuple[Any, ...]:
        return sig, codegen.magic_tuple()


class _SealedFiles(_Files):  # type: ignore[misc]
    """Index and data, each preceded by a digest of its content and of the stamp.

    The data repeat their key. So an index can never lead to the code of another key.
    """

    def save(self, key: Any, data: Any) -> None:
        super().save(key, (key, data))

    def load(self, key: Any) -> Any:
        found = super().load(key)
        return found[1] if found is not None and found[0] == key else None

    def _load_index(self) -> dict[Any, str]:
        try:
            overloads: dict[Any, str] = self._read(self._index_path)
        except OSError:
            return {}
        return overloads

    def _save_index(self, overloads: dict[Any, str]) -> None:
        self._write(self._index_path, overloads)

    def _load_data(self, name: str) -> Any:
        return self._read(self._data_path(name))

    def _save_data(self, name: str, data: Any) -> None:
        self._write(self._data_path(name), data)

    def _read(self, path: str) -> Any:
        """OSError if the file is missing, damaged, or of another stamp."""
        if not os.path.isfile(path):  # opening a pipe would wait
            raise FileNotFoundError(path)
        whole = Path(path).read_bytes()
        if whole[:_SEAL_BYTES] != self._seal(whole[_SEAL_BYTES:]):
            raise OSError(f"{path} is damaged or was made from other code")
        return pickle.loads(whole[_SEAL_BYTES:])

    def _write(self, path: str, content: Any) -> None:
        """Replace the file in one step, because other processes read and write it too."""
        remove_leftovers(Path(path))
        data = dumps(content)
        with self._open_for_write(path) as file:
            file.write(self._seal(data) + data)

    def _seal(self, data: bytes) -> bytes:
        return hashlib.sha256(self._source_stamp + data).digest()


def remove_leftovers(path: Path) -> None:
    """Delete what processes left that were killed while they wrote this file."""
    for leftover in path.parent.glob(f"{path.name}.tmp.*"):
        try:
            if time.time() - leftover.stat().st_mtime > _LEFTOVER_SECONDS:
                leftover.unlink()
        except OSError:  # another process was faster, or it belongs to another user
            continue


@functools.cache
def folders() -> list[Path]:
    """Where kernels may lie, best place first: as Numba is told, beside the package, at home."""
    here = Path(__file__).parent
    own = f"adamas_core_{hashlib.sha256(str(here).encode()).hexdigest()[:16]}"
    named: str = config.CACHE_DIR  # type: ignore[attr-defined]
    found = [Path(named) / own] if named else []
    found.append(Path(cache_from_source(__file__)).parent)
    home = os.environ.get("XDG_CACHE_HOME", "")
    if not os.path.isabs(home):
        home = os.path.expanduser("~/.cache")
    if os.path.isabs(home):  # a user without a home has none
        found.append(Path(home) / "adamas-core" / own)
    return found


@functools.cache
def writable_folder() -> Path | None:
    """The first folder that can be written, or None."""
    for folder in folders():
        try:
            folder.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=folder).close()
        except OSError:
            continue
        return folder
    return None


@functools.cache
def announce() -> None:
    """Say once that kernels are compiled. Loading them from the disk is silent."""
    text = "adamas-core: compiling CPU kernels, "
    folder = writable_folder()
    if folder is not None:
        text += f"once; they are cached in {folder}"
    else:
        tried = ", ".join(map(str, folders()))
        text += (
            f"for this process alone: no folder for a cache can be written (tried {tried}); "
            "set NUMBA_CACHE_DIR to one that can"
        )
    print(text, file=sys.stderr, flush=True)


@functools.cache
def stamp() -> bytes:
    """A digest of all code that kernels are made from, and of the versions that make them.

    Kernels hold code and constants of many files. The code is taken as Python runs it, so it may
    come from a source file, from bytecode alone, or from a zip file. Times of files do not matter.
    """
    versions = (numba.__version__, llvmlite.__version__, np.__version__, platform.python_version())
    digest = hashlib.sha256(repr(versions).encode())
    for name, code in _codes():
        digest.update(name.encode() + fingerprint(code))
    return digest.digest()


def _codes() -> Iterator[tuple[str, CodeType]]:
    names = list(_HOST_MODULES)
    for package in _PACKAGES:
        names += [f"{package}.{m.name}" for m in iter_modules(sys.modules[package].__path__)]
    for name in names:
        spec = find_spec(name)
        loader: Any = spec and spec.loader
        code = loader.get_code(name) if hasattr(loader, "get_code") else None
        if code is not None:  # a module compiled by Cython has none
            yield name, code


def fingerprint(code: CodeType) -> bytes:
    """A digest of bytecode, names and constants. Comments and the place of a file do not matter."""
    digest = hashlib.sha256(code.co_code)
    names = code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars
    digest.update(repr((names, code.co_argcount, code.co_flags, code.co_name)).encode())
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            digest.update(fingerprint(constant))
        elif isinstance(constant, frozenset):
            digest.update(repr(sorted(map(repr, constant))).encode())
        else:
            digest.update(repr(constant).encode())
    return digest.digest()


stamp()  # before the other modules are imported, so that an edit of a file does not come between
