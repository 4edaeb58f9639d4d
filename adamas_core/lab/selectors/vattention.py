"""vAttention: the best tokens, and a uniform sample that stands for all others.

Desai et al., "vAttention: Verified Sparse Attention", arXiv 2510.05688.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...ops import attend, merge
from .largest import Array, Indices, Own, by_scores, checked


@dataclass(frozen=True)
class VAttention:
    """A part of the budget for chosen tokens, the other part for a sample of b of the n others.

    Each sampled token counts n/b times, in the sum of the weights and in that of the values. So
    both sums are unbiased. Half of the budget is the sample. Of the chosen tokens, one in 32 is one
    of the first of the sequence, one in 32 one of the most recent, and the rest are those of the
    largest exact q.k, which the paper calls oracle top-k. The paper adapts b to each head and query
    until a bound on the error holds. Here b is fixed, so that all forms have equal budgets. More
    forced tokens, and a smaller sample, have a larger error on SmolLM2 at 8K.

    The sample of a query depends on its head, its token and the seed alone. `fit` gives each layer
    a seed of its own, from its first key.
    """

    name: str = "vAttention"
    share: int = 2  # budget / number of sampled tokens
    forced: int = 32  # chosen tokens / number of the first ones, and of the recent ones
    seed: int = 0

    def fit(self, q: Array, k: Array) -> VAttention:
        return replace(self, seed=zlib.crc32(np.ascontiguousarray(k[:, 0]).tobytes()))

    def attend(self, q: Array, k: Array, v: Array, budget: int) -> NDArray[Any]:
        K = checked(self.name, q, k, budget)
        sampled = K // self.share
        chosen = self._chosen(q, k, K - sampled)
        sample, stand_for = self._sample(chosen, k.shape[1], sampled)
        parts = [attend(q, k, v, indices, return_lse=True) for indices in (chosen, sample)]
        outs, lses = zip(*parts, strict=True)
        out: NDArray[Any] = merge(outs, [lses[0], lses[1] + np.log(stand_for)])[0]
        return out

    def _chosen(self, q: Array, k: Array, K: int) -> Indices:
        """The first tokens, the recent ones, and those of the largest q.k: (H, L, K)."""
        forced = K // self.forced

        def scores(g: int, x: Array, own: Own) -> Array:
            product: Array = x @ k[g].T
            product[..., :forced] = np.inf
            return product

        return by_scores(self.name, q, k, K, scores, recent=forced)

    def _sample(self, chosen: Indices, S: int, count: int) -> tuple[Indices, Array]:
        """Tokens (H, L, count) of those that are not chosen, and n/b (H, L)."""
        H, L, _ = chosen.shape
        sample = np.full((H, L, count), -1, np.int32)
        stand_for = np.ones((H, L), np.float32)
        for h, l in np.ndindex(H, L):
            own = S - L + l
            taken = chosen[h, l][chosen[h, l] >= 0]
            n = own + 1 - len(taken)
            b = min(count, n)
            if b == 0:
                continue
            rng = np.random.default_rng((self.seed, h, own))
            ranks = np.sort(rng.choice(n, b, replace=False))
            # Among the tokens that are not taken, the first taken[i] - i lie before taken[i].
            before = np.searchsorted(taken - np.arange(len(taken)), ranks, side="right")
            sample[h, l, :b] = ranks + before
            stand_for[h, l] = n / b
        return sample, stand_for

    def bytes_kept(self, D: int) -> float:
        return 0.0

    def bytes_read(self, D: int, S: int, budget: int) -> float:
        """The keys of all tokens in float16, for the largest exact q.k."""
        return 2.0 * D * S

    def bytes_of_rows(self, D: int, S: int, budget: int) -> float:
        return 2.0 * 2 * D * min(budget, S)
