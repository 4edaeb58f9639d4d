"""A decode step: how its work is divided among threads.

One round of items per call, one per thread. A thread that is free takes the next piece of work, so
that a thread that starts late delays no other. A piece is a KV head. If there are few heads, it is
first a part of a head's tokens, and then some rows of queries, for which the candidates of all
parts are there.
"""

from __future__ import annotations

from .._array import FLOAT32, LINE
from ._jit import inlined, invoke, opaque
from ._memory import loop_at, step_at
from ._queries import PART_TOKENS
from ._scratch import estimated, layout_of, sought
from ._simd import store_int64
from ._threads import load_shared, take_next
from .rerank import MASK_RANKS
from .topk import MASK_BITS

WORDS_PER_THREAD = 250_000  # scored in 0.1 ms, the time that waking another thread takes
ROOM_BEYOND = 448  # least room for candidates that do not fit the result: seven tiles


@opaque
def plan_step(at):
    """Parts of heads, room for candidates, and the memory that threads share."""
    loop = loop_at(at)
    step = step_at(loop.record)
    heads, rows = step.B * step.H_kv, step.B * step.H * step.L
    work = rows * step.slots * step.P * (step.weights + 1)
    threads = loop.threads if work >= 2 * WORDS_PER_THREAD else 1
    # Whole heads, or as many parts of each as give every thread two pieces of work.
    step.splits = 1
    if heads % threads != 0 and heads < 4 * threads and step.group == 0:
        step.splits = max(min(-(-2 * threads // heads), -(-step.slots // PART_TOKENS)), 1)
    per_part = sought(step)
    step.part_room = -(-(per_part + max(per_part, ROOM_BEYOND)) // MASK_BITS) * MASK_BITS
    step.row_room = step.splits * per_part + MASK_BITS
    step.coded_room = max(per_part, step.refined) + MASK_RANKS
    step.threads = loop.threads = loop.items = threads
    loop.scratch = layout_of(step).end
    loop.shared = _place(step, 0)
    return 0


@opaque
def place_step(at, memory):
    """The memory that threads share, and the results of the exact tier."""
    step = step_at(loop_at(at).record)
    _place(step, memory)
    if step.indices == 0:
        step.indices = step.chosen
    if step.tail != 0:
        step.whole_out, step.out, step.out_dtype = step.out, step.exact, FLOAT32
    for i in range(2 + step.B * step.H_kv):
        store_int64(step.progress + 8 * i, 0)
    return 0


@inlined
def _place(step, memory):
    """Place the arrays that threads share, each on a line; returns their end."""
    heads, rows = step.B * step.H_kv, step.B * step.H * step.L
    step.progress = memory
    step.counts = _after(step.progress, 8 * (2 + heads))
    step.candidates = _after(step.counts, 8 * rows * step.splits)
    step.ranks = _after(step.candidates, 4 * rows * step.row_room)
    step.chosen = _after(step.ranks, (4 if estimated(step) else 2) * rows * step.row_room)
    end = _after(step.chosen, 4 * rows * step.budget)
    if step.tail == 0:
        return end
    step.sums = end
    step.rest = _after(step.sums, 16 * rows * step.splits)
    step.coded = _after(step.rest, 16 * rows)
    step.coded_ranks = _after(step.coded, 4 * rows * step.coded_room)
    step.coded_counts = _after(step.coded_ranks, 4 * rows * step.coded_room)
    step.exact = _after(step.coded_counts, 8 * rows)
    return _after(step.exact, 4 * rows * step.Dv)


@inlined
def _after(start, octets):
    """The first line after so many bytes."""
    return (start + octets + LINE - 1) // LINE * LINE


@opaque
def step_share(at, item, scratch):
    """The share of one thread."""
    if step_at(at).splits == 1:
        _whole_heads(at, scratch)
    else:
        _parts_of_heads(at, scratch)
    return 0


@inlined
def _whole_heads(at, scratch):
    """Heads that no other thread has taken."""
    step = step_at(at)
    rows = step.H // step.H_kv * step.L
    while True:
        head = take_next(step.progress)
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
def _parts_of_heads(at, scratch):
    """Parts of heads that no other thread has taken, then rows of heads whose parts are done."""
    step = step_at(at)
    heads, rows = step.B * step.H_kv, step.H // step.H_kv * step.L
    # The next item, the next rows, and how many parts of each head are done.
    next_item = step.progress
    next_unit, parts_done = next_item + 8, next_item + 16
    while True:
        item = take_next(next_item)
        if item >= heads * step.splits:
            break
        head, split = divmod(item, step.splits)
        invoke(step.collect, (at, head, split, scratch))
        take_next(parts_done + 8 * head)
    unit = max(1, min(rows, heads * rows // (8 * step.threads)))
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
