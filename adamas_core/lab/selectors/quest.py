"""Quest: pages of tokens, ranked by an upper bound of the scores of their keys.

Tang et al., "Quest: Query-Aware Sparsity for Efficient Long-Context LLM Inference",
arXiv 2406.10774.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .largest import Array, Indices, Own, by_scores


@dataclass(frozen=True)
class Quest:
    """Whole pages, the best first, until the budget is full.

    A page keeps the smallest and the largest value of each coordinate of its keys, m and M. Pages
    are ranked by the sum over coordinates of max(q_i m_i, q_i M_i), the largest q.k of any vector
    between m and M. The query's own page counts up to the query. Every token has the rank of its
    page. The last page may not fit into the budget; then its most recent tokens are taken, so that
    all selectors are compared at the same number of tokens. The published code keeps whole pages,
    at least three.
    """

    name: str = "Quest"
    page: int = 16  # the paper's

    def fit(self, q: Array, k: Array) -> Quest:
        return self

    def __call__(self, q: Array, k: Array, budget: int) -> Indices:
        def scores(g: int, x: Array, own: Own) -> Array:
            low, high = self._bounds(k[g])  # (S, D) each: of each token's page up to the token
            S = len(low)
            ends = np.minimum(np.arange(self.page - 1, S + self.page - 1, self.page), S - 1)
            up: Array = np.maximum(x, 0)  # (G, l, D)
            down: Array = np.minimum(x, 0)
            pages: Array = up @ high[ends].T + down @ low[ends].T  # (G, l, S / page)
            of_query = np.vecdot(up, high[own]) + np.vecdot(down, low[own])  # (G, l)
            pages[:, np.arange(len(own)), own // self.page] = of_query
            of_tokens: Array = np.repeat(pages, self.page, axis=-1)
            return of_tokens[..., :S]

        return by_scores(self.name, q, k, budget, scores)

    def _bounds(self, k: Array) -> tuple[Array, Array]:
        """Minimum and maximum (S, D) of keys from the start of each token's page to the token."""
        S, D = k.shape
        padded = np.pad(k, ((0, -S % self.page), (0, 0)), mode="edge")
        paged = padded.reshape(-1, self.page, D)
        low: Array = np.minimum.accumulate(paged, axis=1).reshape(-1, D)
        high: Array = np.maximum.accumulate(paged, axis=1).reshape(-1, D)
        return low[:S], high[:S]

    def bytes_kept(self, D: int) -> float:
        """Two float16 vectors per page."""
        return 4 * D / self.page

    def bytes_read(self, D: int, S: int, budget: int) -> float:
        return self.bytes_kept(D) * S
