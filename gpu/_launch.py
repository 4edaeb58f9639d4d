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

# Bytes of dynamic shared memory that a launch may take unasked, and the most that every GPU from
# sm_80 on can give to a block.
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
        self._functions: dict[tuple[int, Kernel, Variant], Any] = {}

    def launch(
        self,
        kernel: Kernel,
        variant: Variant,
        grid: tuple[int, ...],
        threads: int,
        arguments: Mapping[str, Argument],
        shared: int = 0,
    ) -> None:
        key = (self.xp.cuda.runtime.getDevice(), kernel, variant)
        function = self._functions.get(key)
        if function is None:
            function = self._functions[key] = self._load(kernel, variant)
        if shared > SHARED_FREE and function.max_dynamic_shared_size_bytes < shared:
            function.max_dynamic_shared_size_bytes = shared
        converted = tuple(map(_converted, kernel.ordered(arguments)))
        function(grid, (threads,), converted, shared_mem=shared)

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


def _converted(argument: Argument) -> Any:
    """As CuPy passes it: null, 64 bits, 32 bits, or the address of an array."""
    if argument is None:
        return np.uint64(0)
    if isinstance(argument, int):
        return np.int64(argument)
    if isinstance(argument, float):
        return np.float32(argument)
    return argument
