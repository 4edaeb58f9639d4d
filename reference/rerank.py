"""Ranking selected tokens once more, by the exact inner product, the specification."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

LANES = 16


def rerank(
    q: NDArray[Any],
    k: NDArray[Any],
    indices: NDArray[np.int32],
    budget: int,
    sinks: int = 0,
    recent: int = 0,
) -> NDArray[np.int32]:
    """Of each query's tokens `indices` (B, H, L, M) the `budget` of the largest q.k, ascending.

    q is (B, H, L, D), k (B, H_kv, S, D); indices ascend, with -1 behind the last one. The first
    `sinks` and the last `recent` of them are taken whatever their product. Among equal products the
    most recent token wins; NaN counts as minus infinity.
    """
    G = q.shape[1] // k.shape[1]
    chosen = np.full((*indices.shape[:-1], budget), -1, np.int32)
    for row in np.ndindex(indices.shape[:-1]):
        b, h, _ = row
        tokens = indices[row][indices[row] >= 0]
        product = inner_products(q[row], k[b, h // G, tokens])
        product[np.isnan(product)] = -np.inf
        forced = np.zeros(len(tokens), bool)
        forced[:sinks] = True
        forced[max(len(tokens) - recent, 0) :] = True
        best_first = np.lexsort((-tokens, -product, ~forced))
        best = np.sort(tokens[best_first[:budget]])
        chosen[row][: len(best)] = best
    return chosen


def inner_products(q: NDArray[Any], keys: NDArray[Any]) -> NDArray[np.float32]:
    """q (D,) times keys (n, D), in float32; every product is rounded."""
    with np.errstate(over="ignore", invalid="ignore"):
        return lane_sums(q.astype(np.float32) * keys.astype(np.float32))


def lane_sums(x: NDArray[np.float32]) -> NDArray[np.float32]:
    """Sums of the rows of x (n, D), in an order that gives the same bits everywhere.

    Of sixteen lanes, lane j adds up the elements j, j + 16, ... in turn; then the upper half of the
    lanes is added to the lower one, until one is left.
    """
    n, D = x.shape
    padded = np.zeros((n, -(-D // LANES) * LANES), np.float32)
    padded[:, :D] = x
    with np.errstate(over="ignore", invalid="ignore"):
        sums = np.zeros((n, LANES), np.float32)
        for first in range(0, D, LANES):
            sums += padded[:, first : first + LANES]
        while sums.shape[1] > 1:
            half = sums.shape[1] // 2
            sums = sums[:, :half] + sums[:, half:]
    return sums[:, 0]
