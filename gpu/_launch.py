"""The one place where the backend meets CuPy: its arrays, and launches on its current stream.

The launchers ask `device()` for both. The tests replace the device by one that runs the same
kernels on a CPU, with a stand-in for CuPy as the array module.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any, Protocol

import numpy as np

from ._available import why_not
from ._compiled import compiled
from ._kernels import Kernel, Variant
from ._nvrtc import architecture_for

# An array of the device's array module.
Array = Any

# A kernel's argument: an array or None for a pointer, an int, or a float.
Argument = Any

# Bytes of dynamic shared memory that a launch may take unasked. With the static shared memory of a
# kernel they stay below 48 KB.
SHARED_FREE = 32 * 1024
SHARED_MOST = 99 * 1024  # the most that every GPU from sm_80 on gives to a block, static too


class Device(Protocol):
    """Where arrays live and kernels run."""

    xp: Any  # the array module: cupy

    def launch(
        self,
        kernel: Kernel,
        variant: Variant,
        grid: tuple[int, ...],
        threads: int,
        arguments: Mapping[str, Argument],
        shared: int = 0,
    ) -> None:
        """Run a grid of blocks, each with `threads` threads and `shared` bytes of dynamic memory.

        `arguments` are the kernel's, by the names of its parameters, see `Kernel.ordered`.
        """

    def multiprocessors(self) -> int:
        """The number of blocks that fill the device, at one per multiprocessor."""

    def capturing(self) -> bool:
        """Whether the current stream is being captured in a CUDA graph."""

    def number(self) -> int:
        """The number of the current device."""


class CupyDevice:
    """CuPy's current device and stream."""

    def __init__(self) -> None:
        import cupy

        self.xp = cupy
        self._functions: dict[tuple[int, str, Variant], Any] = {}
        self._shared: dict[tuple[int, str, Variant], int] = {}  # bytes that were asked for

    def launch(
        self,
        kernel: Kernel,
        variant: Variant,
        grid: tuple[int, ...],
        threads: int,
        arguments: Mapping[str, Argument],
        shared: int = 0,
    ) -> None:
        key = (self.xp.cuda.runtime.getDevice(), kernel.name, variant)
        function = self._functions.get(key)
        if function is None:
            function = self._functions[key] = self._load(kernel, variant)
        if shared > self._shared.get(key, SHARED_FREE):
            function.max_dynamic_shared_size_bytes = self._shared[key] = shared
        function(grid, (threads,), _converted(kernel, arguments), shared_mem=shared)

    def multiprocessors(self) -> int:
        return int(self.xp.cuda.Device().attributes["MultiProcessorCount"])

    def capturing(self) -> bool:
        return bool(self.xp.cuda.get_current_stream().is_capturing())

    def number(self) -> int:
        return int(self.xp.cuda.runtime.getDevice())

    def _load(self, kernel: Kernel, variant: Variant) -> Any:
        architecture = architecture_for(self.xp.cuda.Device().compute_capability)
        path, symbol = compiled(kernel, variant, architecture)
        return self.xp.RawModule(path=str(path)).get_function(symbol)


def device() -> Device:
    """The device on which the backend runs."""
    return cupy_device()


@cache
def cupy_device() -> CupyDevice:
    """CuPy's device; RuntimeError with the reason if it cannot be used."""
    reason = why_not()
    if reason is not None:
        raise RuntimeError(reason)
    return CupyDevice()


_NULL = np.uint64(0)


def _converted(kernel: Kernel, arguments: Mapping[str, Argument]) -> tuple[Any, ...]:
    """Arguments as CuPy passes them: the address of an array or null, 64 bits, 32 bits.

    Kinds are not checked here, to save time. The tests run every launcher on a device that does.
    """
    passed = kernel.ordered(arguments)
    for i, (_, kind) in enumerate(kernel.parameters):
        if kind == "int":
            passed[i] = np.int64(passed[i])
        elif kind == "float":
            passed[i] = np.float32(passed[i])
        elif passed[i] is None:
            passed[i] = _NULL
    return tuple(passed)
