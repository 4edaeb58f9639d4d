"""Numba's threads: their start, their number, a fork, and the counters that they share."""

from __future__ import annotations

import ctypes
import mmap
import multiprocessing
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import llvmlite.binding as llvm
import numba
from llvmlite import ir
from numba.core import cgutils, config, types
from numba.core.compiler_lock import global_compiler_lock
from numba.np.ufunc import parallel

from ._simd import I32, I64, operation

MOST_THREADS: int = config.NUMBA_NUM_THREADS  # type: ignore[attr-defined]


@operation(types.int64, types.int64)
def take_next(builder: Any, address: Any) -> Any:
    """Add 1 to the int64 at address, and return its old value.

    A thread that sees the new value also sees all that this thread wrote before.
    """
    pointer = builder.inttoptr(address, I64.as_pointer())
    return builder.atomic_rmw("add", pointer, I64(1), "seq_cst")


@operation(types.void, types.int64, types.int64)
def raise_to(builder: Any, address: Any, value: Any) -> None:
    """Let the int64 at address be at least `value`, while other threads do the same."""
    builder.atomic_rmw("max", builder.inttoptr(address, I64.as_pointer()), value, "seq_cst")


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


PARALLEL_FOR = "numba_parallel_for"  # the symbol that Numba's kernels call for a parallel loop
_LAYER_LOOP = "adamas_core_layer_loop"


@operation(types.int64)
def layer_loop(builder: Any) -> Any:
    """The address of the parallel loop of Numba's threads, or 0 where they cannot be used."""
    word = builder.module.globals.get(_LAYER_LOOP)
    if word is None:
        word = ir.GlobalVariable(builder.module, I64, _LAYER_LOOP)
    return builder.load(word)


def _start_threads() -> None:
    """Start Numba's threads with a short wait.

    In GNU's OpenMP a thread without work spins for about 5 ms before it sleeps. Between two steps
    of attention a decoder multiplies matrices, and there every spinning thread takes a core away
    from BLAS: 1500 ms per token instead of 40 were measured on 2 cores. A wait of about 15 us is
    still long enough from one kernel of a step to the next. The library reads the variable once,
    when it is loaded.

    Numba asks multiprocessing for its start method, which fixes it. It is set free again, so that
    the program can still choose "spawn".
    """
    wait = "GOMP_SPINCOUNT"
    own = wait not in os.environ and "OMP_WAIT_POLICY" not in os.environ
    free = multiprocessing.get_start_method(allow_none=True) is None
    if own:
        os.environ[wait] = "1000"
    try:
        numba.get_num_threads()  # starts them
    finally:
        if own:
            del os.environ[wait]
        if free:
            multiprocessing.set_start_method(None, force=True)


def _forked() -> bool:
    """Whether this process may be a fork: Linux tells if it has run no program of its own since."""
    without_exec = 0x40  # PF_FORKNOEXEC
    try:
        fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return False
    return bool(int(fields[6]) & without_exec)


def _shared_word() -> Any:
    """An int64 that becomes 0 in a forked process, whoever forks."""
    page = mmap.mmap(-1, mmap.PAGESIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    wipe_on_fork = 18  # MADV_WIPEONFORK
    with suppress(OSError):  # a kernel without it
        page.madvise(wipe_on_fork)
    word = ctypes.c_int64.from_buffer(page)
    os.register_at_fork(after_in_child=lambda: setattr(word, "value", 0))
    return word


def _find_layer_loop(started_before: bool) -> Any:
    """Publish the loop of Numba's threads under the name that `layer_loop` reads."""
    word = _shared_word()
    llvm.add_symbol(_LAYER_LOOP, ctypes.addressof(word))
    inherited = started_before and _forked()  # perhaps its threads are those of the parent
    if parallel.threading_layer() != "workqueue" and not inherited:
        word.value = llvm.address_of_symbol(PARALLEL_FOR)
    return word


def _find_openmp_limit() -> Callable[[], int]:
    """A function: how many threads OpenMP lets the calling thread use.

    threadpoolctl sets this limit. Numba asks for its own number, whatever the limit is. Threading
    layers other than OpenMP have none.
    """
    if sys.platform == "linux" and parallel.threading_layer() == "omp":
        try:
            loaded: Any = ctypes.CDLL("libgomp.so.1", mode=os.RTLD_NOLOAD | os.RTLD_NOW)
        except OSError:  # a Numba that was built with another OpenMP
            pass
        else:
            limit: Callable[[], int] = loaded.omp_get_max_threads
            return limit
    return lambda: MOST_THREADS


_started_before: bool = parallel._is_initialized
_start_threads()
_layer_loop = _find_layer_loop(_started_before)
openmp_limit = _find_openmp_limit()

# Numba's own functions of these names take two locks first. A process that is forked while another
# thread holds one of them would wait for ever.
get_num_threads: Callable[[], int] = parallel._get_num_threads  # type: ignore[attr-defined]
set_num_threads: Callable[[int], None] = parallel._set_num_threads  # type: ignore[attr-defined]

# A fork waits until no thread compiles. The compiler of the new process is then in order, and its
# lock is free.
os.register_at_fork(
    before=global_compiler_lock.acquire,
    after_in_parent=global_compiler_lock.release,
    after_in_child=global_compiler_lock.release,
)
