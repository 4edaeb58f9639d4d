"""Double Sparsity: approximate logits from a few channels that are chosen offline.

Yang et al., "Post-Training Sparse Attention with Double Sparsity", arXiv 2408.07092.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .largest import Array, Indices, Own, by_scores


@dataclass(frozen=True)
class DoubleSparsity:
    """Tokens by q.k over the D / 16 channels of the largest mean |q_i k_i|, with keys in 4 bits.

    `fit` calibrates the channels of each KV head. The mean is over the heads of the group and over
    the prefix's tokens, each with its own query and key, as in the published calibration. The
    label cache holds a token's channels as integers, from its smallest to its largest value.
    """

    name: str = "Double Sparsity"
    share: int = 16  # D / number of channels; the paper's
    bits: int = 4
    channels: NDArray[Any] | None = field(default=None, repr=False, compare=False)  # (H_kv, r)

    def fit(self, q: Array, k: Array) -> DoubleSparsity:
        H_kv, S, D = k.shape
        grouped = q.reshape(H_kv, -1, S, D)
        weight = np.abs(grouped * k[:, None]).mean(axis=(1, 2))  # (H_kv, D)
        channels = np.argsort(-weight, axis=-1, kind="stable")[:, : self._channels(D)]
        return replace(self, channels=channels)

    def __call__(self, q: Array, k: Array, budget: int) -> Indices:
        channels = self.channels
        if channels is None:
            raise ValueError(f"{self.name}: has no channels; fit it to a prefix first")

        def scores(g: int, x: Array, own: Own) -> Array:
            labels = self._labels(k[g][:, channels[g]])
            product: Array = x[..., channels[g]] @ labels.T
            return product

        return by_scores(self.name, q, k, budget, scores)

    def _labels(self, k: Array) -> Array:
        """Keys (S, r) after rounding by the label cache."""
        low = k.min(axis=-1, keepdims=True)
        step = (k.max(axis=-1, keepdims=True) - low) / np.float32(2**self.bits - 1)
        step[step == 0] = 1
        labels: Array = low + step * np.rint((k - low) / step)
        return labels

    def _channels(self, D: int) -> int:
        return max(D // self.share, 1)

    def bytes_kept(self, D: int) -> float:
        """The labels, and a smallest value and a step in float16."""
        return self._channels(D) * self.bits / 8 + 4

    def bytes_read(self, D: int, S: int, budget: int) -> float:
        return self.bytes_kept(D) * S
