"""Compiled kernels in CuPy's cache folder, so that each variant is compiled once per machine.

A file is used if it is whole. If the folder cannot be written, each process compiles for itself.
"""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from functools import cache
from hashlib import sha256
from pathlib import Path
from uuid import uuid4

from ._kernels import Kernel, Variant, headers
from ._nvrtc import Binary, compile_variant, options


def compiled(kernel: Kernel, variant: Variant, architecture: str) -> tuple[Path, str]:
    """The file of a compiled variant, and the name of the kernel in it."""
    from cupy.cuda import nvrtc

    key = repr(
        (
            nvrtc.getVersion(),
            options(kernel, architecture),
            kernel.source,
            kernel.expression(variant),
            headers(),
        )
    )
    stem = f"adamas-{sha256(key.encode()).hexdigest()}"
    suffix = "cubin" if architecture.startswith("sm_") else "ptx"
    folder = _folder()
    if folder is not None:
        symbol = _read(folder, stem, suffix)
        if symbol is not None:
            return folder / f"{stem}.{suffix}", symbol
    binary = compile_variant(kernel, variant, architecture)
    if folder is not None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            _write(folder / f"{stem}.{suffix}", binary.code)
            _write(folder / f"{stem}.name", _name(binary))
        except OSError as error:
            _announce(str(error))
        else:
            return folder / f"{stem}.{suffix}", binary.symbol
    return _in_memory(binary), binary.symbol


def _folder() -> Path | None:
    """CuPy's cache folder, or None for a user without a home."""
    named = os.environ.get("CUPY_CACHE_DIR")
    if named:
        return Path(named)
    try:
        return Path.home() / ".cupy" / "kernel_cache"
    except RuntimeError as error:
        _announce(str(error))
        return None


def _name(binary: Binary) -> bytes:
    """The content of the second file: the digest of the code, and the name of the kernel in it.

    It ends with a digest of its own.
    """
    text = f"{sha256(binary.code).hexdigest()} {binary.symbol}"
    return f"{text} {sha256(text.encode()).hexdigest()}".encode()


def _read(folder: Path, stem: str, suffix: str) -> str | None:
    """The name of the kernel in a variant's file; None if a file is missing or damaged."""
    code, name = folder / f"{stem}.{suffix}", folder / f"{stem}.name"
    try:
        if not (code.is_file() and name.is_file()):
            return None
        told = name.read_bytes()
        symbol = told.split(b" ")[1].decode() if told.count(b" ") == 2 else ""
        whole = told == _name(Binary(code.read_bytes(), symbol, "", ""))
    except (OSError, UnicodeDecodeError):
        return None
    return symbol if whole else None


def _write(path: Path, data: bytes) -> None:
    """Write the file in one step, because other processes read the folder at the same time."""
    part = path.with_name(f"{path.name}.{uuid4().hex}")
    try:
        part.write_bytes(data)
        os.replace(part, path)
    except BaseException:
        with suppress(OSError):
            part.unlink()
        raise


def _in_memory(binary: Binary) -> Path:
    """A file that is in no folder. The system removes it with the process."""
    file = os.memfd_create("adamas")
    with open(file, "wb", closefd=False) as target:
        target.write(binary.code)
    return Path(f"/proc/self/fd/{file}")


@cache
def _announce(reason: str) -> None:
    print(
        f"adamas-core: CUDA kernels are compiled for this process alone: {reason}. "
        "Set CUPY_CACHE_DIR to a folder that can be written.",
        file=sys.stderr,
        flush=True,
    )
