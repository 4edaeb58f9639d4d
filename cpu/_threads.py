"""Threads: their number, and the counters that they share."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable
from typing import Any

import numba
from llvmlite import ir
from numba.core import cgutils, config, types
from numba.np.ufunc.parallel import threading_layer

from ._simd import I32, I64, operation

MOST_THREADS: int = config.NUMBA_NUM_THREADS  # type: ignore[attr-defined]


@operation(types.int64, types.int64)
def take_next(builder: Any, address: Any) -> Any:
    """Add 1 to the int64 at address, and return its old value.

    A thread that sees the new value also sees all that this thread wrote before.
    """
    pointer = builder.inttoptr(address, I64.as_pointer())
    return builder.atomic_rmw("add", pointer, I64(1), "seq_cst")


@operation(types.int64, types.int64)
def load_shared(builder: Any, address: Any) -> Any:
    """The int64 at address, to which other threads add."""
    return builder.load_atomic(builder.inttoptr(address, I64.as_pointer()), "acquire", 8)


# Numba does not cache a kernel that calls its own get_num_threads and set_num_threads. These call
# the same functions of its threading layer, by the names that Numba's generated code uses.


@operation(types.int64)
def threads_allowed(builder: Any) -> Any:
    function = cgutils.get_or_insert_function(
        builder.module, ir.FunctionType(I64, []), "get_num_threads"
    )
    return builder.call(function, [])


@operation(types.void, types.int64)
def allow_threads(builder: Any, count: Any) -> None:
    function = cgutils.get_or_insert_function(
        builder.module, ir.FunctionType(ir.VoidType(), [I32]), "set_num_threads"
    )
    builder.call(function, [builder.trunc(count, I32)])


def _start_threads() -> None:
    """Start Numba's threads with a short wait.

    In GNU's OpenMP a thread without work spins for about 5 ms before it sleeps. Between two steps
    of attention a decoder multiplies matrices, and there every spinning thread takes a core away
    from BLAS: 1500 ms per token instead of 40 were measured on 2 cores. A wait of about 15 us is
    still long enough from one kernel of a step to the next. The library reads the variable once,
    when it is loaded.
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


def _find_openmp_limit() -> Callable[[], int]:
    """A function: how many threads OpenMP lets the calling thread use.

    threadpoolctl sets this limit. Numba asks for its own number, whatever the limit is. Threading
    layers other than OpenMP have none.
    """
    if sys.platform == "linux" and threading_layer() == "omp":
        try:
            loaded: Any = ctypes.CDLL("libgomp.so.1", mode=os.RTLD_NOLOAD | os.RTLD_NOW)
        except OSError:  # a Numba that was built with another OpenMP
            pass
        else:
            limit: Callable[[], int] = loaded.omp_get_max_threads
            return limit
    return lambda: MOST_THREADS


_start_threads()
openmp_limit = _find_openmp_limit()
