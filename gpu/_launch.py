"""The one place where the backend meets CuPy: its arrays, and launches on its current stream.

The launchers ask `device()` for both. The tests replace the device by one that runs the same
kernels on a CPU, with a stand-in for CuPy as the array module.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ._kernels import Kernel, Variant, headers
from ._nvrtc import Binary, architecture_for, compile_variant, options

# An array of the device's array module.
Array = Any

# A kernel's argument: an array or None become a pointer, an int 64 bits, a float 32 bits.
Argument = Any

# Dynamic shared memory that needs no leave, and the most that every GPU from sm_80 on can give.
SHARED_FREE, SHARED_MOST = 48 * 1024, 99 * 1024


class Device(Protocol):
    """Where arrays live and kernels run."""

    xp: Any  # the array module: cupy

    def launch(
        self,
        kernel: Kernel,
        variant: Variant,
        grid: tuple[int, ...],
        threads: int,
        arguments: Sequence[Argument],
        shared: int = 0,
    ) -> None:
        """Run `grid` blocks of `threads` threads, each with `shared` bytes of dynamic memory."""

    def multiprocessors(self) -> int:
        """How many blocks it takes to fill the device, at one each."""

    def capturing(self) -> bool:
        """Whether the current stream is being captured in a CUDA graph."""

    def number(self) -> int:
        """Which of the machine's devices is the current one."""


class CupyDevice:
    """CuPy's current device and stream."""

    def __init__(self) -> None:
        import cupy

        self.xp = cupy
        self._functions: dict[tuple[int, Kernel, Variant], Any] = {}

    def launch(
        self,
        kernel: Kernel,
        variant: Variant,
        grid: tuple[int, ...],
        threads: int,
        arguments: Sequence[Argument],
        shared: int = 0,
    ) -> None:
        key = (self.xp.cuda.runtime.getDevice(), kernel, variant)
        function = self._functions.get(key)
        if function is None:
            function = self._functions[key] = self._load(kernel, variant)
        if shared > SHARED_FREE and function.max_dynamic_shared_size_bytes < shared:
            function.max_dynamic_shared_size_bytes = shared
        function(grid, (threads,), tuple(map(_converted, arguments)), shared_mem=shared)

    def multiprocessors(self) -> int:
        return int(self.xp.cuda.Device().attributes["MultiProcessorCount"])

    def capturing(self) -> bool:
        return bool(self.xp.cuda.get_current_stream().is_capturing())

    def number(self) -> int:
        return int(self.xp.cuda.runtime.getDevice())

    def _load(self, kernel: Kernel, variant: Variant) -> Any:
        architecture = architecture_for(self.xp.cuda.Device().compute_capability)
        path, symbol = _cached(kernel, variant, architecture)
        return self.xp.RawModule(path=str(path)).get_function(symbol)


def device() -> Device:
    """Where the backend runs."""
    return cupy_device()


@cache
def cupy_device() -> CupyDevice:
    """CuPy's device; RuntimeError with the reason where there is none."""
    from . import why_not

    reason = why_not()
    if reason is not None:
        raise RuntimeError(reason)
    return CupyDevice()


def multiprocessors() -> int:
    """Of the current device; what the tests run on answers for itself."""
    return device().multiprocessors()


def capturing() -> bool:
    """Whether the current stream is being captured in a CUDA graph."""
    return device().capturing()


def _converted(argument: Argument) -> Any:
    if argument is None:
        return np.uint64(0)
    if isinstance(argument, int):
        return np.int64(argument)
    if isinstance(argument, float):
        return np.float32(argument)
    return argument


def _cached(kernel: Kernel, variant: Variant, architecture: str) -> tuple[Path, str]:
    """The compiled variant's file and the kernel's name in it, from CuPy's cache folder."""
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
    folder = Path(os.environ.get("CUPY_CACHE_DIR") or Path.home() / ".cupy" / "kernel_cache")
    stem = f"adamas-{sha256(key.encode()).hexdigest()}"
    code = folder / f"{stem}.{'cubin' if architecture.startswith('sm_') else 'ptx'}"
    name = folder / f"{stem}.name"  # written last: where it is, the code is complete
    if not name.is_file():
        binary: Binary = compile_variant(kernel, variant, architecture)
        folder.mkdir(parents=True, exist_ok=True)
        _write(code, binary.code)
        _write(name, binary.symbol.encode())
    return code, name.read_text()


def _write(path: Path, data: bytes) -> None:
    """All at once, since other processes read the folder too."""
    with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
        file.write(data)
    os.replace(file.name, path)
