"""Parallel loops that survive a fork: Numba's threads where they are safe, new ones elsewhere.

Numba's threads cannot be used everywhere:

- A forked process has none of its parent's threads. GNU's OpenMP would wait for them for ever, and
  Numba ends the process before that.
- Under the layer "workqueue", two callers at once end the process.

In these places a loop starts threads of its own and waits for them. That takes about 20 us more
per call, and needs no state between calls.

Kernels call `parallel_for` in place of Numba's numba_parallel_for, see _jit.kernel. The functions
here take and return int64, as all functions that are called by address.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.core import cgutils, types

from ._invoke import invoke
from ._simd import I32, I64, load_int64, operation, store_int64
from ._threads import layer_loop, take_next

TAKE_PIECES = "adamas_core_take_pieces"  # the symbol of the compiled `take_pieces`

# A job, in int64: the next piece, then the arguments of parallel_for except the last one.
_NEXT, _FUNCTION, _ARGUMENTS, _SIZES, _STEPS, _DATA, _INNER, _ARRAYS, _WORDS = range(9)


def parallel_for(function, arguments, sizes, steps, data, inner, arrays, threads):
    """Call function(arguments, sizes, steps, data) on all pieces, on so many threads.

    sizes[0] is the number of pieces. sizes[1] to sizes[inner] are the same for all. Piece i of
    array j begins at arguments[j] + i * steps[j].
    """
    if threads <= 1 or load_int64(sizes) <= 1:
        invoke(function, (arguments, sizes, steps, data))  # which goes through all pieces
        return 0
    loop = layer_loop()
    if loop != 0:
        invoke(loop, (function, arguments, sizes, steps, data, inner, arrays, threads))
        return 0
    job = words_on_stack(_WORDS)
    store_int64(job + 8 * _NEXT, 0)
    store_int64(job + 8 * _FUNCTION, function)
    store_int64(job + 8 * _ARGUMENTS, arguments)
    store_int64(job + 8 * _SIZES, sizes)
    store_int64(job + 8 * _STEPS, steps)
    store_int64(job + 8 * _DATA, data)
    store_int64(job + 8 * _INNER, inner)
    store_int64(job + 8 * _ARRAYS, arrays)
    others = min(threads, load_int64(sizes)) - 1
    handles = words_on_stack(others)
    started = 0
    while started < others and start_thread(handles + 8 * started, job) == 0:
        started += 1
    call_take_pieces(job)  # all of them, if no thread could be started
    for i in range(started):
        join_thread(load_int64(handles + 8 * i))
    return 0


def take_pieces(job):
    """The share of one thread: pieces that no other thread has taken, one at a time."""
    function = load_int64(job + 8 * _FUNCTION)
    arguments = load_int64(job + 8 * _ARGUMENTS)
    sizes = load_int64(job + 8 * _SIZES)
    steps = load_int64(job + 8 * _STEPS)
    data = load_int64(job + 8 * _DATA)
    inner = load_int64(job + 8 * _INNER)
    arrays = load_int64(job + 8 * _ARRAYS)
    own_sizes = words_on_stack(inner + 1)
    own_arguments = words_on_stack(arrays)
    store_int64(own_sizes, 1)
    for i in range(1, inner + 1):
        store_int64(own_sizes + 8 * i, load_int64(sizes + 8 * i))
    while True:
        piece = take_next(job + 8 * _NEXT)
        if piece >= load_int64(sizes):
            return 0
        for i in range(arrays):
            first, step = load_int64(arguments + 8 * i), load_int64(steps + 8 * i)
            store_int64(own_arguments + 8 * i, first + piece * step)
        invoke(function, (own_arguments, own_sizes, steps, data))


@operation(types.int64, types.int64)
def words_on_stack(builder: Any, count: Any) -> Any:
    """The address of so many int64, which live as long as the function that asks for them."""
    return builder.ptrtoint(builder.alloca(I64, size=count), I64)


@operation(types.int64, types.int64)
def call_take_pieces(builder: Any, job: Any) -> Any:
    return builder.call(_function(builder, TAKE_PIECES, I64, 1), [job])


@operation(types.int64, types.int64, types.int64)
def start_thread(builder: Any, handle: Any, job: Any) -> Any:
    """Start a thread that takes pieces, and store its handle at an address; 0 if it runs."""
    create = _function(builder, "pthread_create", I32, 4)
    start = builder.ptrtoint(_function(builder, TAKE_PIECES, I64, 1), I64)
    return builder.sext(builder.call(create, [handle, I64(0), start, job]), I64)


@operation(types.void, types.int64)
def join_thread(builder: Any, handle: Any) -> None:
    builder.call(_function(builder, "pthread_join", I32, 2), [handle, I64(0)])


def _function(builder: Any, name: str, result: ir.Type, count: int) -> Any:
    """A function of C whose arguments are addresses, or as wide."""
    return cgutils.get_or_insert_function(
        builder.module, ir.FunctionType(result, [I64] * count), name
    )
