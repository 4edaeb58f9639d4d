"""Loki: approximate logits from the keys' leading principal components.

Singhania et al., "Loki: Low-rank Keys for Efficient Sparse Attention", arXiv 2406.02542.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .largest import Array, Indices, Own, by_scores


@dataclass(frozen=True)
class Loki:
    """Tokens by q.k over the first D / 4 principal components of the keys.

    `fit` finds the components of each KV head from the prefix's keys, after RoPE. K itself is
    cached in this basis, which changes no q.k, so nothing else is kept.
    """

    name: str = "Loki"
    share: int = 4  # D / d; the paper's d = D / 4
    basis: NDArray[Any] | None = field(default=None, repr=False, compare=False)  # (H_kv, D, d)

    def fit(self, q: Array, k: Array) -> Loki:
        D = k.shape[-1]
        centered = (k - k.mean(axis=1, keepdims=True)).astype(np.float64)
        _, vectors = np.linalg.eigh(centered.swapaxes(-1, -2) @ centered)  # eigenvalues ascend
        basis = vectors[..., ::-1][..., : self._components(D)]
        return replace(self, basis=np.ascontiguousarray(basis, np.float32))

    def __call__(self, q: Array, k: Array, budget: int) -> Indices:
        basis = self.basis
        if basis is None:
            raise ValueError(f"{self.name}: has no basis; fit it to a prefix first")

        def scores(g: int, x: Array, own: Own) -> Array:
            product: Array = (x @ basis[g]) @ (k[g] @ basis[g]).T
            return product

        return by_scores(self.name, q, k, budget, scores)

    def _components(self, D: int) -> int:
        return max(D // self.share, 1)

    def bytes_kept(self, D: int) -> float:
        return 0.0

    def bytes_read(self, D: int, S: int, budget: int) -> float:
        return 2.0 * self._components(D) * S
