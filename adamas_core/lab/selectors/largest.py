"""From scores to token indices: the K largest among the tokens that a query sees."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ... import checks

Array: TypeAlias = NDArray[np.float32]
Indices: TypeAlias = NDArray[np.int32]
Own: TypeAlias = NDArray[np.int64]  # (l,): each query's own token, the last one that it sees
Scores: TypeAlias = Callable[[int, Array, Own], NDArray[Any]]

# The most scores in memory at a time, 64 MiB of float32: 512 queries of 3 heads over 8192 tokens
# take 48 MiB.
HELD = 2**24


def checked(where: str, q: Array, k: Array, budget: int) -> int:
    """Check q (H, L, D), k (H_kv, S, D) and the budget; return K = min(budget, S)."""
    checks.floats(where, "q", q, (3,))
    checks.floats(where, "k", k, (3,))
    checks.heads(where, "q and k", q[None].shape, k[None].shape)
    checks.same_head_dim(where, q, "k", k.shape[-1])
    L, S = q.shape[1], k.shape[1]
    if not 1 <= L <= S:
        raise ValueError(
            f"{where}: {checks.shown('q', q)} and {checks.shown('k', k)}; expected 1 to {S} "
            "queries, which are the last of the tokens"
        )
    K: int = min(checks.at_least(where, "budget", budget, 1), S)
    return K


def blocks(H_kv: int, G: int, L: int, S: int) -> Iterator[tuple[int, slice, Own]]:
    """Split queries into parts of at most HELD scores: KV head, slice of queries, own tokens."""
    step = max(HELD // (G * S), 1)
    for g in range(H_kv):
        for first in range(0, L, step):
            rows = slice(first, min(first + step, L))
            yield g, rows, np.arange(S - L, S)[rows]


def by_scores(
    where: str,
    q: Array,
    k: Array,
    budget: int,
    scores: Scores,
    recent: int = 0,
) -> Indices:
    """Indices (H, L, K) of the tokens of the largest scores, one KV head after the other.

    ``scores(g, queries, own)`` takes some queries (G, l, D) of KV head g and returns (G, l, S), or
    (1, l, S) if all heads of the group share one choice. Tokens that a query does not see are left
    out here, whatever their score.
    """
    K = checked(where, q, k, budget)
    H, L, D = q.shape
    H_kv, S = k.shape[:2]
    grouped = q.reshape(H_kv, H // H_kv, L, D)
    indices = np.empty((H_kv, H // H_kv, L, K), np.int32)
    for g, rows, own in blocks(H_kv, H // H_kv, L, S):
        indices[g, :, rows] = largest(scores(g, grouped[g, :, rows], own), own, K, recent)
    return indices.reshape(H, L, K)


def hide(scores: NDArray[Any], own: Own) -> Array:
    """Scores (..., l, S) in float32, -inf for tokens after own[i], which query i does not see."""
    visible = np.arange(scores.shape[-1]) <= own[:, None]
    return np.where(visible, scores, -np.inf).astype(np.float32, copy=False)


def only(scores: NDArray[Any], tokens: Indices) -> Array:
    """Scores (..., S) in float32, -inf for all tokens that are not in `tokens` (..., M)."""
    S = scores.shape[-1]
    flat, rows = scores.reshape(-1, S), tokens.reshape(-1, tokens.shape[-1])
    row, column = np.nonzero(rows >= 0)
    token = rows[row, column]
    left: Array = np.full(flat.shape, -np.inf, np.float32)
    left[row, token] = flat[row, token]
    return left.reshape(scores.shape)


def largest(
    scores: NDArray[Any],
    own: Own,
    K: int | NDArray[np.integer],
    recent: int = 0,
) -> Indices:
    """Indices (..., l, K) of the largest scores (..., l, S), ascending, -1 after the last.

    Query i sees the tokens 0 to own[i]. Among equal scores the most recent token wins. The last
    `recent` visible tokens come before all others. K may be an array (..., l), a number for each
    query; the indices are then as wide as the largest.
    """
    *lead, S = scores.shape
    token = np.arange(S)
    last = np.broadcast_to(own, lead).reshape(-1, 1)
    visible = token <= last
    rank = hide(scores, own).reshape(-1, S)
    rank[visible & (token > last - recent)] = np.inf

    wanted = np.broadcast_to(K, lead).reshape(-1)
    counts = np.minimum(wanted, last[:, 0] + 1)  # never more than are visible
    rows = np.arange(len(rank))
    edge = np.partition(rank, np.unique(S - counts), axis=1)[rows, S - counts, None]
    chosen = rank > edge
    equal = (rank == edge) & visible
    room = counts - chosen.sum(axis=1)
    tied = equal.sum(axis=1) > room
    if tied.any():
        newest_first = equal[tied, ::-1].cumsum(axis=1, dtype=np.int32)[:, ::-1]
        equal[tied] &= newest_first <= room[tied, None]
    chosen |= equal

    indices = np.full((len(rank), int(wanted.max())), -1, np.int32)
    row, column = np.nonzero(chosen)
    starts = np.cumsum(counts) - counts
    indices[row, np.arange(len(row)) - starts[row]] = column
    return indices.reshape(*lead, -1)
