"""Adamas: tokens by the 2-bit codes of their keys.

Yan et al., "Adamas: Hadamard Sparse Attention for Efficient Long-Context Inference",
arXiv 2510.18413.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adamas_core.codes import calibrate, encode
from adamas_core.ops import select_topk

from .largest import Array, Indices, checked


@dataclass(frozen=True)
class Adamas:
    """Ours: the weighted metric at rms thresholds, through the library's own select_topk."""

    name: str = "Adamas, weighted"
    thresholds: NDArray[Any] | None = field(default=None, repr=False, compare=False)

    def fit(self, q: Array, k: Array) -> Adamas:
        return replace(self, thresholds=calibrate(k))

    def __call__(self, q: Array, k: Array, budget: int) -> Indices:
        K = checked(self.name, q, k, budget)
        if self.thresholds is None:
            raise ValueError(f"{self.name}: has no thresholds; fit it to a prefix first")
        indices: Indices = np.asarray(select_topk(q, encode(k, self.thresholds), K))
        return indices

    def bytes_kept(self, D: int) -> float:
        """Two bits a coordinate."""
        return D / 4

    def bytes_read(self, D: int, S: int, budget: int) -> float:
        return self.bytes_kept(D) * S
