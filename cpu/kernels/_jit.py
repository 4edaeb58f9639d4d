"""JIT flags, set in this one place, and how kernels are compiled."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import llvmlite.binding as llvm
import numba
from numba.core import types
from numba.core.ccallback import CFunc
from numba.core.compiler_lock import global_compiler_lock

from . import _team
from ._invoke import invoke as invoke
from ._kernel_cache import KernelCache
from ._threads import (
    MOST_THREADS,
    PARALLEL_FOR,
    get_num_threads,
    openmp_limit,
    set_num_threads,
)

_CFunc: Any = CFunc  # its attributes are not typed

# Strict IEEE arithmetic: the transform's bits are part of the contract, so there is no fastmath. A
# division by zero gives inf or NaN, as in NumPy, and never raises.
FLAGS: dict[str, Any] = {"nogil": True, "error_model": "numpy", "boundscheck": False}


class kernel:
    """Compile a parallel kernel at its first call and cache it on disk."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.dispatcher = numba.njit(parallel=True, **FLAGS)(function)
        self.dispatcher._cache = KernelCache(function)

    def __call__(self, record: Any) -> Any:
        if not self.dispatcher.overloads:
            self._compile(record)
        limit = openmp_limit()
        if limit >= MOST_THREADS:
            return self.dispatcher(record)
        allowed = get_num_threads()
        set_num_threads(min(limit, allowed))
        try:
            return self.dispatcher(record)
        finally:
            set_num_threads(allowed)

    def _compile(self, record: Any) -> None:
        """Compile or load, and link to the parallel loop of _team.py instead of Numba's.

        LLVM looks symbols up when it links. No other kernel is linked in between, because Numba
        links under this lock.
        """
        with global_compiler_lock:
            own, numbas = _parallel_for(), llvm.address_of_symbol(PARALLEL_FOR)
            llvm.add_symbol(PARALLEL_FOR, own)
            try:
                self.dispatcher.compile((numba.typeof(record),))
                self.dispatcher.disable_compile()  # another type would be linked to Numba's loop
            finally:
                llvm.add_symbol(PARALLEL_FOR, numbas)


def inlined(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile into every caller. Arguments that are constant there are constants inside."""
    return numba.njit(forceinline=True, **FLAGS)(function)


def outlined(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile as a function of its own. Kernels call it and keep it in their cache files."""
    return numba.njit(**FLAGS)(function)


class opaque:
    """Compile a function of int64 by itself. Kernels `invoke` it by its address.

    Numba links all functions that a kernel calls into it, at every level of calls, and optimises
    the whole each time. For the fused step that takes minutes. An opaque function raises nothing
    and allocates nothing.
    """

    address: int

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function

    def __getattr__(self, name: str) -> int:
        """The address of the compiled function, at its first use: compile, or load from the disk.

        functools.cached_property would hold a lock of its own, in which a fork could get stuck.
        """
        if name != "address":
            raise AttributeError(name)
        count = self._function.__code__.co_argcount
        signature = (types.int64,) * count, types.int64
        with global_compiler_lock:
            self._compiled = _CFunc(self._function, signature, {}, dict(FLAGS))
            self._compiled._cache = KernelCache(self._function)
            self._compiled.compile()
            self.address = int(self._compiled.address)
        return self.address


@functools.cache
def _parallel_for() -> int:
    """The address of the parallel loop that kernels are linked to."""
    llvm.add_symbol(_team.TAKE_PIECES, opaque(_team.take_pieces).address)
    return opaque(_team.parallel_for).address
