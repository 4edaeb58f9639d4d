"""Which tokens each query sees, where it is not the usual: the queries are the last tokens.

Backends know one rule. The queries are the last L of `length` tokens, and each sees the tokens up
to itself. Any other positions become runs of queries that follow this rule: a run whose positions
rise by one, or a run whose queries all see the same tokens. The queries of such a run become heads
of one query, because all query heads of a KV head read the same keys.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from . import checks
from .dispatch import Array, array_module, backend_of, int_or_view_or_row
from .softmax import Softmax

NDArray = np.ndarray[Any, Any]

ALL = "all"

Positions: TypeAlias = str | Sequence[int] | Array | None

# Computes queries (B, H', L', D), of which the last sees `lengths` (B,) tokens. Returns arrays
# (B, H', L', ...).
Call: TypeAlias = Callable[[Any, NDArray, Softmax], tuple[Any, ...]]


class Run(NamedTuple):
    """The queries first to end - 1, which one call computes."""

    first: int
    end: int
    lengths: NDArray  # (B,): tokens that the last of them sees
    alike: bool  # all of them see these; else each sees one more than the one before it


def tokens_seen(
    where: str, positions: Positions, shape: tuple[int, ...], length: int | NDArray
) -> NDArray | None:
    """The number of tokens that each query sees (B, L); None where it is the usual one.

    shape is (B, H, L, D), and `length` the tokens of all sequences, or of each (B,).
    """
    if positions is None:
        return None
    B, _, L, _ = shape
    lengths = np.broadcast_to(length, (B,)).astype(np.int64)
    if isinstance(positions, str):
        if positions != ALL:
            raise ValueError(f"{where}: positions={positions!r}; expected 'all', or integers")
        return np.repeat(lengths[:, None], L, axis=1)
    given = np.asarray(int_or_view_or_row("positions", positions))
    if given.dtype.kind not in "iu" and given.size:
        raise TypeError(f"{where}: {checks.shown('positions', given)}; expected integers")
    if given.shape not in ((L,), (B, L)):
        raise ValueError(
            f"{where}: {checks.shown('positions', given)}; expected ({L},) or ({B}, {L})"
        )
    at = np.broadcast_to(given, (B, L))
    wrong = (at < -1) | (at >= lengths[:, None])
    if wrong.any():
        b, l = map(int, np.argwhere(wrong)[0])
        raise ValueError(
            f"{where}: positions hold {at[b, l]} for query {l} of sequence {b}; expected -1 to "
            f"{lengths[b] - 1}"
        )
    return at.astype(np.int64) + 1


def in_runs(
    q: Any, seen: NDArray, softmax: Softmax, call: Call, alone: bool = False
) -> list[list[Any]]:
    """The results of `call` for each run of queries, as arrays (B, H, L', ...).

    With `alone` no query shares a call with one that sees the same tokens.
    """
    B, H, _, D = q.shape
    parts = []
    for first, end, lengths, alike in runs(seen, alone):
        part, n = q[:, :, first:end], end - first
        if not alike:
            parts.append(list(call(part, lengths, softmax)))
            continue
        own = softmax
        if softmax.sink_logits is not None:
            own = replace(softmax, sink_logits=np.repeat(softmax.sink_logits, n))
        found = call(part.reshape(B, H * n, 1, D), lengths, own)
        parts.append([x.reshape(B, H, n, *x.shape[3:]) for x in found])
    return parts


def together(parts: list[list[Any]], axis: int = 2) -> list[Any]:
    """The arrays (B, H, L, ...) of all queries, from those of their runs."""
    xp = array_module(backend_of(parts[0][0]))
    return [
        x[0] if len(x) == 1 else xp.concatenate(list(x), axis=axis)
        for x in zip(*parts, strict=True)
    ]


def runs(seen: NDArray, alone: bool) -> list[Run]:
    """The fewest runs, taken from the first query on."""
    before, after = seen[:, :-1], seen[:, 1:]
    rises = ((after == before + 1) | ((after == 0) & (before == 0))).all(axis=0)
    stays = (after == before).all(axis=0) & (not alone)
    found, first, L = [], 0, seen.shape[1]
    while first < L:
        ends = [first + 1 + _leading(x[first:]) for x in (rises, stays)]
        end = max(ends)
        alike = ends[1] > ends[0]
        found.append(Run(first, end, seen[:, end - 1], alike))
        first = end
    return found


def _leading(x: NDArray) -> int:
    """How many of the first elements are true."""
    return int(np.argmin(x)) if not x.all() else len(x)


def dense(
    home: Any,
    rows: tuple[Any, Any, Any],
    seen: NDArray,
    softmax: Softmax,
    window: int | None = None,
) -> tuple[Any, Any]:
    """Dense attention of q (B, H, L, D) to the first seen (B, L) tokens of k and v; out and lse.

    With a window, to the last `window` of these. `rows` are q, k and v.
    """
    q, k, v = rows

    def call(part: Any, lengths: NDArray, softmax: Softmax) -> tuple[Any, ...]:
        equal = len(lengths) == 0 or (lengths == lengths[0]).all()
        groups = [slice(None)] if equal else [slice(b, b + 1) for b in range(len(lengths))]
        found = []
        for one in groups:
            n = int(lengths[one].max(initial=0))
            held = part[one], k[one, :, :n], v[one, :, :n]
            found.append(list(home.attend(*held, None, softmax, True, window)))
        return tuple(together(found, axis=0))

    out, lse = together(in_runs(q, seen, softmax, call))
    return out, lse
