"""Exact selection of the nearest tokens, the specification."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .layout import Selection


def topk(
    distances: NDArray[np.unsignedinteger], budget: int, selection: Selection
) -> NDArray[np.int32]:
    """Indices (B, H, L, budget) of the tokens with the smallest distances (B, H, L, S), ascending.

    Among equal distances the most recent token, the highest index, wins. The first
    `selection.sinks` and the last `selection.recent` visible tokens are always taken. They count
    towards the budget. A token at the largest distance of the dtype is invisible and never taken;
    for uint16 that distance is 65535. Where fewer than `budget` tokens are visible, the last places
    hold -1.
    """
    invisible = np.iinfo(distances.dtype).max
    indices = np.full((*distances.shape[:-1], budget), -1, np.int32)
    for row in np.ndindex(distances.shape[:-1]):
        visible = np.flatnonzero(distances[row] != invisible)
        rank = distances[row][visible].astype(np.int64)
        rank[: selection.sinks] = -1
        rank[max(len(rank) - selection.recent, 0) :] = -1
        nearest_first = np.lexsort((-visible, rank))  # by rank, then by index from the highest
        chosen = np.sort(visible[nearest_first[:budget]])
        indices[row][: len(chosen)] = chosen
    return indices
