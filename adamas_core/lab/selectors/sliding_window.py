"""Only the most recent tokens."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .largest import Array, Indices, checked


@dataclass(frozen=True)
class SlidingWindow:
    """The last `budget` tokens up to each query, whatever they hold."""

    name: str = "sliding window"

    def fit(self, q: Array, k: Array) -> SlidingWindow:
        return self

    def __call__(self, q: Array, k: Array, budget: int) -> Indices:
        return window(q, k, checked(self.name, q, k, budget), sinks=0)

    def bytes_kept(self, D: int) -> float:
        return 0.0

    def bytes_read(self, D: int, S: int, budget: int) -> float:
        return 0.0


def window(q: Array, k: Array, K: int, sinks: int) -> Indices:
    """The first `sinks` tokens and the last K - sinks up to each query, (H, L, K)."""
    H, L, _ = q.shape
    S = k.shape[1]
    own = np.arange(S - L, S)[:, None]
    column = np.arange(K)
    start = np.maximum(own - K + 1, 0)  # 0 if all visible tokens fit
    token = np.where(column < sinks, column, start + column)
    chosen = np.where(token <= own, token, -1).astype(np.int32)
    return np.broadcast_to(chosen, (H, L, K)).copy()
