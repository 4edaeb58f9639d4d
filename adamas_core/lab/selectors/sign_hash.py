"""Sign hashing, in the manner of HATA: Hamming distances of 1-bit codes.

Gong et al., "HATA: Trainable and Hardware-Efficient Hash-Aware Top-k Attention for Scalable
Large Model Inference", arXiv 2506.02572.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ...reference.hadamard import hadamard
from .largest import Array, Indices, Own, by_scores


@dataclass(frozen=True)
class SignHash:
    """Tokens by the number of coordinates in which transformed query and key differ in sign.

    HATA learns 128 hash functions per head from the model's queries and keys. Here they are the
    rows of the Walsh-Hadamard transform, one bit per coordinate. So the figures show what untrained
    hashing reaches, and not HATA.
    """

    name: str = "sign hash"

    def fit(self, q: Array, k: Array) -> SignHash:
        return self

    def __call__(self, q: Array, k: Array, budget: int) -> Indices:
        def scores(g: int, x: Array, own: Own) -> Array:
            agreement: Array = signs(x) @ signs(k[g]).T  # Dt - 2 * Hamming distance
            return agreement

        return by_scores(self.name, q, k, budget, scores)

    def bytes_kept(self, D: int) -> float:
        """One bit per coordinate."""
        return D / 8

    def bytes_read(self, D: int, S: int, budget: int) -> float:
        return self.bytes_kept(D) * S


def signs(x: Array) -> Array:
    """Signs (..., Dt) of transformed x (..., D): 1 if above 0, else -1."""
    return np.where(hadamard(x) > 0, np.float32(1), np.float32(-1))
