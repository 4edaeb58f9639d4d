"""Dense attention as a selector."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .largest import Array, Indices, checked


@dataclass(frozen=True)
class Full:
    """All tokens up to each query, for any budget: indices (H, L, S)."""

    name: str = "full"

    def fit(self, q: Array, k: Array) -> Full:
        return self

    def __call__(self, q: Array, k: Array, budget: int) -> Indices:
        checked(self.name, q, k, budget)
        H, L, _ = q.shape
        S = k.shape[1]
        token = np.arange(S, dtype=np.int32)
        own = np.arange(S - L, S)[:, None]
        return np.broadcast_to(np.where(token <= own, token, np.int32(-1)), (H, L, S)).copy()

    def bytes_kept(self, D: int) -> float:
        return 0.0

    def bytes_read(self, D: int, S: int, budget: int) -> float:
        return 0.0
