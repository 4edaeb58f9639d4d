"""Exact selection of the nearest tokens, the specification."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def topk(
    distances: NDArray[np.unsignedinteger], budget: int, sinks: int = 0, recent: int = 0
) -> NDArray[np.int32]:
    """Indices (B, H, L, budget) of the tokens with the smallest distances (B, H, L, S), ascending.

    Among equal distances the most recent token, the highest index, wins. The first `sinks` and
    the last `recent` visible tokens are taken whatever their distance and count towards the
    budget. Tokens at the largest distance of the dtype, which of uint16 is 65535, are never taken;
    where fewer than `budget` are left, -1 stands behind the last index.
    """
    invisible = np.iinfo(distances.dtype).max
    indices = np.full((*distances.shape[:-1], budget), -1, np.int32)
    for row in np.ndindex(distances.shape[:-1]):
        visible = np.flatnonzero(distances[row] != invisible)
        rank = distances[row][visible].astype(np.int64)
        rank[:sinks] = -1
        rank[max(len(rank) - recent, 0) :] = -1
        nearest_first = np.lexsort((-visible, rank))  # by rank, then by index from the highest
        chosen = np.sort(visible[nearest_first[:budget]])
        indices[row][: len(chosen)] = chosen
    return indices
