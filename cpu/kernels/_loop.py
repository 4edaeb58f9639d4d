"""The parallel loop of all kernels."""

from __future__ import annotations

import numpy as np
from numba import prange

from .._array import LINE
from .._records import Loop
from ._jit import invoke, kernel, outlined
from ._memory import line_of, loop_at
from ._threads import allow_threads, take_next, threads_allowed

NEXT_ITEM, NEXT_REST = Loop.offset("next_item"), Loop.offset("next_rest")


@kernel
def run(loops):
    """Plan the loop, place the shared memory, and take all items in their two rounds."""
    loop = loops[0]
    at = loops.ctypes.data
    allowed = threads_allowed()
    loop.threads = allowed
    invoke(loop.plan, (at,))
    shared = np.empty(loop.shared + LINE, np.uint8)
    if loop.place != 0:
        invoke(loop.place, (at, line_of(shared)))
    size = loop.scratch + LINE
    for i in range(2):
        threads = min(loop.threads, loop.items if i == 0 else loop.rest)
        allow_threads(max(threads, 1))
        for _thread in prange(threads):
            scratch = np.empty(size, np.uint8)
            _take_items(at, i, shared, scratch)
    allow_threads(allowed)


@outlined
def _take_items(at, i, shared, scratch):
    """The share of one thread. Arrays live as long as the caller holds them by these names."""
    loop = loop_at(at)
    record = loop.record
    if i == 0:
        function, count, counter = loop.work, loop.items, at + NEXT_ITEM
    else:
        function, count, counter = loop.finish, loop.rest, at + NEXT_REST
    while True:
        item = take_next(counter)
        if item >= count:
            break
        invoke(function, (record, item, line_of(scratch)))
