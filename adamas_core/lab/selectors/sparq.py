"""SparQ: approximate logits from the components in which the query is largest.

Ribar et al., "SparQ Attention: Bandwidth-Efficient LLM Inference", arXiv 2312.04985.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .largest import Array, Indices, Own, by_scores


@dataclass(frozen=True)
class SparQ:
    """Tokens by sum of q_i k_i over the r = D / 4 components of the largest |q_i|.

    Heads that share a KV head share the components, so that the keys are read once: those of the
    largest sum of |q_i| over the heads. A quarter of the budget goes to the most recent tokens, as
    in the paper's experiments. `SparQMean` also has the paper's mean value for the tokens that are
    not taken.
    """

    name: str = "SparQ"
    share: int = 4  # D / r; the paper's r = 32 at D = 128
    recent: int = 4  # budget / number of recent tokens

    def fit(self, q: Array, k: Array) -> SparQ:
        return self

    def __call__(self, q: Array, k: Array, budget: int) -> Indices:
        def scores(g: int, x: Array, own: Own) -> Array:
            product: Array = self.masked(x) @ k[g].T
            return product

        K = min(budget, k.shape[1])
        return by_scores(self.name, q, k, budget, scores, recent=K // self.recent)

    def masked(self, x: Array) -> Array:
        """Queries (G, l, D) of one KV head: their chosen components, and 0 for all others."""
        r = self._components(x.shape[-1])
        size = np.abs(x).sum(axis=0)  # (l, D)
        largest = np.argsort(-size, axis=-1, kind="stable")[:, :r]
        mask = np.zeros(size.shape, np.float32)
        np.put_along_axis(mask, largest, 1, axis=-1)
        return x * mask

    def _components(self, D: int) -> int:
        return max(D // self.share, 1)

    def bytes_kept(self, D: int) -> float:
        """A second copy of K in float16, stored component by component.

        Without it the components lie scattered, and reading one takes a whole cache line.
        """
        return 2.0 * D

    def bytes_read(self, D: int, S: int, budget: int) -> float:
        return 2.0 * self._components(D) * S
