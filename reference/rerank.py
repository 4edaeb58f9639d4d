"""Ranking selected tokens again, by their exact inner products, the specification."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .layout import Selection

LANES = 16


def rerank(
    q: NDArray[Any],
    k: NDArray[Any],
    indices: NDArray[np.int32],
    budget: int,
    selection: Selection,
) -> NDArray[np.int32]:
    """Indices (B, H, L, budget) of the tokens with the largest q.k among `indices`, ascending.

    q is (B, H, L, D), k is (B, H_kv, S, D). Each row of `indices` (B, H, L, M) ascends and ends
    with -1 where it has fewer than M tokens. Its first `selection.sinks` and last
    `selection.recent` tokens are always taken. Among equal products the most recent token wins. NaN
    counts as minus infinity.
    """
    G = q.shape[1] // k.shape[1]
    chosen = np.full((*indices.shape[:-1], budget), -1, np.int32)
    for row in np.ndindex(indices.shape[:-1]):
        b, h, _ = row
        tokens = indices[row][indices[row] >= 0]
        product = inner_products(q[row], k[b, h // G, tokens])
        product[np.isnan(product)] = -np.inf
        forced = np.zeros(len(tokens), bool)
        forced[: selection.sinks] = True
        forced[max(len(tokens) - selection.recent, 0) :] = True
        best_first = np.lexsort((-tokens, -product, ~forced))
        best = np.sort(tokens[best_first[:budget]])
        chosen[row][: len(best)] = best
    return chosen


def inner_products(q: NDArray[Any], keys: NDArray[Any]) -> NDArray[np.float32]:
    """q (D,) times keys (n, D), in float32; every product is rounded."""
    with np.errstate(over="ignore", invalid="ignore"):
        return lane_sums(q.astype(np.float32) * keys.astype(np.float32))


def lane_sums(x: NDArray[np.float32]) -> NDArray[np.float32]:
    """Sums of the rows of x (n, D), in an order that gives the same bits in every backend.

    There are sixteen lanes. Lane j adds up the elements j, j + 16, j + 32, ... one by one. Then the
    upper half of the lanes is added to the lower half, until one lane is left.
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
