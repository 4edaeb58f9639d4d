"""JIT flags, set in this one place, and the notice that kernels are being compiled."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba
from llvmlite import ir
from numba.core import cgutils, event, types
from numba.core.ccallback import CFunc
from numba.extending import intrinsic

from adamas_core.reference import layout

from ._threads import MOST_THREADS, openmp_limit

_HERE = Path(__file__).parent
_CFunc: Any = CFunc  # its attributes are not typed

# Strict IEEE arithmetic: the transform's bits are part of the contract, so there is no fastmath. A
# division by zero gives inf or NaN, as in NumPy, and never raises.
_FLAGS: dict[str, Any] = {"nogil": True, "error_model": "numpy", "boundscheck": False}

# Numba looks for changes in the file of the kernel alone. A kernel also holds code of other files
# of this folder and constants of the reference, so the newest file decides if a cache is stale.
_NEWEST = max(
    file.stat().st_mtime_ns
    for folder in (_HERE, Path(layout.__file__).parent)
    for file in folder.glob("*.py")
)


class kernel:
    """Compile a parallel kernel at its first call and cache it on disk."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.dispatcher = numba.njit(parallel=True, cache=True, **_FLAGS)(function)
        _look_at_every_file(self.dispatcher._cache)

    def __call__(self, record: Any) -> Any:
        limit = openmp_limit()
        if limit >= MOST_THREADS:
            return self.dispatcher(record)
        allowed = numba.get_num_threads()
        numba.set_num_threads(min(limit, allowed))
        try:
            return self.dispatcher(record)
        finally:
            numba.set_num_threads(allowed)


def inlined(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile into every caller. Arguments that are constant there are constants inside."""
    return numba.njit(forceinline=True, **_FLAGS)(function)


def outlined(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile as a function of its own. Kernels call it and keep it in their cache files."""
    return numba.njit(**_FLAGS)(function)


class opaque:
    """Compile a function of int64 by itself. Kernels `invoke` it by its address.

    Numba links all functions that a kernel calls into it, at every level of calls, and optimises
    the whole each time. For the fused step that takes minutes. An opaque function raises nothing
    and allocates nothing.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function

    @functools.cached_property
    def address(self) -> int:
        """Address of the compiled function. The first use compiles, or loads from the disk."""
        count = self._function.__code__.co_argcount
        signature = (types.int64,) * count, types.int64
        self._compiled = _Announced(self._function, signature, {}, dict(_FLAGS))
        self._compiled.enable_caching()
        _look_at_every_file(self._compiled._cache)
        self._compiled.compile()
        return int(self._compiled.address)


class _Announced(_CFunc):  # type: ignore[misc]
    def _compile_uncached(self) -> Any:
        _announce(self._cache.cache_path)
        return super()._compile_uncached()


def _invoke(typing_context, address, arguments):
    """Call the opaque function at this address with a tuple of int64."""

    def emit(context: Any, builder: Any, sig: Any, values: Any) -> Any:
        word = ir.IntType(64)
        at, packed = values
        function = ir.FunctionType(word, [word] * len(arguments))
        pointer = builder.inttoptr(at, function.as_pointer())
        return builder.call(pointer, cgutils.unpack_tuple(builder, packed))

    return types.int64(types.int64, arguments), emit


invoke: Any = intrinsic(_invoke)


def _look_at_every_file(cache: Any) -> None:
    index = cache._cache_file
    index._source_stamp = (index._source_stamp, _NEWEST)


@functools.cache
def _announce(folder: str) -> None:
    """Say once that kernels are compiled. Loading them from the disk is silent."""
    text = f"adamas-core: compiling CPU kernels, once; they are cached in {folder}"
    print(text, file=sys.stderr, flush=True)


class _Notice(event.Listener):
    """Announce the first kernel of this package that Numba compiles."""

    def on_start(self, event_: event.Event) -> None:
        dispatcher = event_.data["dispatcher"]
        code = getattr(getattr(dispatcher, "py_func", None), "__code__", None)
        if code is None or Path(code.co_filename).parent != _HERE:
            return
        if dispatcher.targetoptions.get("parallel"):
            event.unregister("numba:compile", self)
            _announce(dispatcher.stats.cache_path)

    def on_end(self, event_: event.Event) -> None:
        pass


event.register("numba:compile", _Notice())
