"""The oracle: the tokens of the largest q.k; it reads all keys."""

from __future__ import annotations

from dataclasses import dataclass

from .largest import Array, Indices, by_scores


@dataclass(frozen=True)
class Exact:
    """The largest exact q.k: no other choice of K tokens captures more attention."""

    name: str = "exact top-k"

    def fit(self, q: Array, k: Array) -> Exact:
        return self

    def __call__(self, q: Array, k: Array, budget: int) -> Indices:
        return by_scores(self.name, q, k, budget, lambda g, x, own: x @ k[g].T)

    def bytes_kept(self, D: int) -> float:
        return 0.0

    def bytes_read(self, D: int, S: int, budget: int) -> float:
        """The keys of all tokens in float16."""
        return 2.0 * D * S
