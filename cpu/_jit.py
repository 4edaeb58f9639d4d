"""The one place that sets JIT flags, and that says when kernels are being compiled."""

from __future__ import annotations

import ctypes
import functools
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba
from llvmlite import ir
from numba.core import cgutils, config, event, types
from numba.core.ccallback import CFunc
from numba.extending import intrinsic
from numba.np.ufunc.parallel import threading_layer

_HERE = Path(__file__).parent
_CFunc: Any = CFunc  # its attributes are not typed

# Strict IEEE arithmetic: the transform's bits are part of the contract, so no fastmath. A division
# by zero gives inf or NaN, as in NumPy, and never raises.
_FLAGS: dict[str, Any] = {"nogil": True, "error_model": "numpy", "boundscheck": False}

_MOST_THREADS: int = config.NUMBA_NUM_THREADS  # type: ignore[attr-defined]

# Numba looks for changes in the file of the kernel alone. A kernel holds code of this folder's
# other files too, so the newest of them all decides whether a cached one is stale.
_NEWEST = max(file.stat().st_mtime_ns for file in _HERE.glob("*.py"))


class kernel:
    """Compile a parallel kernel at its first call and cache it on disk."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.dispatcher = numba.njit(parallel=True, cache=True, **_FLAGS)(function)
        _look_at_every_file(self.dispatcher._cache)

    def __call__(self, *arguments: Any) -> Any:
        limit = _openmp_limit()
        if limit >= _MOST_THREADS:
            return self.dispatcher(*arguments)
        allowed = numba.get_num_threads()
        numba.set_num_threads(min(limit, allowed))
        try:
            return self.dispatcher(*arguments)
        finally:
            numba.set_num_threads(allowed)


def inlined(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile into every caller; arguments that are constants there are constants inside."""
    return numba.njit(forceinline=True, **_FLAGS)(function)


def part(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile as a function of its own, called by kernels and kept in their cache files."""
    return numba.njit(**_FLAGS)(function)


class opaque:
    """Compile a function of int64 by itself; kernels `invoke` it by its address.

    Numba links what a kernel calls into it, as it does at every level of calls below, and optimises
    the whole each time: minutes, for the fused step. Such a function raises nothing and allocates
    nothing.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function

    @functools.cached_property
    def address(self) -> int:
        """Of the compiled function; compiles at first, or loads from the cache on disk."""
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


@functools.cache
def _announce(folder: str) -> None:
    """Say once that kernels are compiled; loading them from the cache is silent."""
    text = f"adamas-core: compiling CPU kernels, once; they are cached in {folder}"
    print(text, file=sys.stderr, flush=True)


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


def _find_openmp_limit() -> Callable[[], int]:
    """How many threads OpenMP lets the calling thread use, which threadpoolctl limits.

    Numba asks for its own number whatever that limit is. Other threading layers have none.
    """
    if sys.platform == "linux" and threading_layer() == "omp":
        try:
            loaded: Any = ctypes.CDLL("libgomp.so.1", mode=os.RTLD_NOLOAD | os.RTLD_NOW)
        except OSError:  # a Numba that was built with another OpenMP
            pass
        else:
            limit: Callable[[], int] = loaded.omp_get_max_threads
            return limit
    return lambda: _MOST_THREADS


def _start_threads() -> None:
    """Start Numba's threads with a short wait.

    GNU's OpenMP lets a thread without work spin for about 5 ms before it sleeps. Between two steps
    of attention a decoder multiplies matrices, and there every spinning thread takes a core away
    from BLAS: 1500 ms a token instead of 40 were measured on 2 cores. A wait of about 15 us still
    bridges the kernels of one step. The library reads the variable once, when it is loaded.
    """
    wait = "GOMP_SPINCOUNT"
    own = wait not in os.environ and "OMP_WAIT_POLICY" not in os.environ
    if own:
        os.environ[wait] = "1000"
    try:
        numba.get_num_threads()  # starts them
    finally:
        if own:
            del os.environ[wait]


class _Notice(event.Listener):
    """Hears Numba compile the first kernel of this package."""

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
_start_threads()
_openmp_limit = _find_openmp_limit()
