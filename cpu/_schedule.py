"""The kernel of a decode step, and how its work is divided among threads.

One parallel region per call. A thread that is free takes the next piece of work, so that a thread
that starts late delays no other. A piece is a KV head. If there are few heads, it is first a part
of a head's tokens, and then some rows of queries, for which the candidates of all parts are there.
"""

from __future__ import annotations

import numpy as np
from numba import prange

from ._array import aligned
from ._jit import inlined, invoke, kernel, outlined
from ._queries import PART_TOKENS
from ._scratch import estimated, layout_of, sought
from ._step import step_at
from ._threads import allow_threads, load_shared, take_next, threads_allowed
from .topk import MASK_BITS

WORDS_PER_THREAD = 250_000  # scored in 0.1 ms, the time that waking another thread takes
ROOM_BEYOND = 448  # least room for candidates that do not fit the result: seven tiles


@kernel
def run(steps):
    """Select, and attend if step.out is not 0."""
    step = steps[0]
    heads = step.B * step.H_kv
    rows = step.B * step.H * step.L
    allowed = threads_allowed()
    work = rows * step.slots * step.P * (step.weights + 1)
    threads = allowed if work >= 2 * WORDS_PER_THREAD else 1
    # Whole heads, or as many parts of each as give every thread two pieces of work.
    splits = 1
    if heads % threads != 0 and heads < 4 * threads and step.group == 0:
        splits = max(min(-(-2 * threads // heads), -(-step.slots // PART_TOKENS)), 1)
    per_part = sought(step)
    row_room = splits * per_part + MASK_BITS
    candidates = np.empty(rows * row_room, np.int32)
    ranks = np.empty((2 if estimated(step) else 1) * rows * row_room, np.uint16)
    counts = np.empty(rows * splits, np.int64)
    step.splits = splits
    step.part_room = -(-(per_part + max(per_part, ROOM_BEYOND)) // MASK_BITS) * MASK_BITS
    step.row_room = row_room
    step.candidates = candidates.ctypes.data
    step.ranks = ranks.ctypes.data
    step.counts = counts.ctypes.data
    sums = np.empty(2 * rows * splits if step.tail > 0 else 0, np.float64)
    step.sums = sums.ctypes.data
    # Next item, next rows, and how many parts of each head are done.
    shared = np.zeros(2 + heads, np.int64)
    at, scratch_bytes = steps.ctypes.data, layout_of(step).end
    allow_threads(threads)
    for _thread in prange(threads):
        scratch = np.empty(scratch_bytes, np.uint8)
        _work(at, threads, candidates, ranks, counts, sums, shared, scratch)
    allow_threads(allowed)


@outlined
def _work(at, threads, candidates, ranks, counts, sums, shared, scratch):
    """The share of one thread. Arrays live as long as the caller holds them by these names."""
    next_item = shared.ctypes.data
    if step_at(at).splits == 1:
        _whole_heads(at, next_item, aligned(scratch))
    else:
        _parts_of_heads(at, threads, next_item, aligned(scratch))


@inlined
def _whole_heads(at, next_head, scratch):
    """Heads that no other thread has taken."""
    step = step_at(at)
    rows = step.H // step.H_kv * step.L
    while True:
        head = take_next(next_head)
        if head >= step.B * step.H_kv:
            break
        invoke(step.collect, (at, head, 0, scratch))
        _finish(at, rows * head, rows * (head + 1), scratch)


@inlined
def _finish(at, start, end, scratch):
    """Rows for which all candidates are there."""
    step = step_at(at)
    invoke(step.choose, (at, start, end, scratch))
    if step.out != 0:
        invoke(step.attend_rows, (at, start, end, scratch))
    if step.tail != 0:
        invoke(step.add_tail, (at, start, end, scratch))


@inlined
def _parts_of_heads(at, threads, next_item, scratch):
    """Parts of heads that no other thread has taken, then rows of heads whose parts are done."""
    step = step_at(at)
    heads, rows = step.B * step.H_kv, step.H // step.H_kv * step.L
    next_unit = next_item + 8
    parts_done = next_item + 16
    while True:
        item = take_next(next_item)
        if item >= heads * step.splits:
            break
        head, split = divmod(item, step.splits)
        invoke(step.collect, (at, head, split, scratch))
        take_next(parts_done + 8 * head)
    unit = max(1, min(rows, heads * rows // (8 * threads)))
    units = (rows + unit - 1) // unit
    while True:
        item = take_next(next_unit)
        if item >= heads * units:
            break
        head, i = divmod(item, units)
        while load_shared(parts_done + 8 * head) < step.splits:
            pass  # another thread is about to finish it
        start = rows * head + unit * i
        _finish(at, start, min(start + unit, rows * (head + 1)), scratch)
