"""SparQ with its mean value for the tokens that it does not choose, arXiv 2312.04985."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...ops import attend
from .largest import Array, Indices, checked
from .sparq import SparQ


@dataclass(frozen=True)
class SparQMean:
    """alpha * the attention to SparQ's tokens + (1 - alpha) * the mean of all visible values.

    alpha is the share of the softmax that the chosen tokens have, estimated from the approximate
    logits. These are sums over the r chosen components q_r of the query, divided by
    sqrt(D * |q_r|_1 / |q|_1), because r components give a smaller sum than all D. The paper leaves
    the mean value out for models with grouped heads.
    """

    name: str = "SparQ, mean value"
    inner: SparQ = field(default_factory=SparQ)

    def fit(self, q: Array, k: Array) -> SparQMean:
        return self

    def attend(self, q: Array, k: Array, v: Array, budget: int) -> NDArray[Any]:
        checked(self.name, q, k, budget)
        H, L, _ = q.shape
        H_kv, S, _ = v.shape
        indices = self.inner(q, k, budget)
        alpha = self._alpha(q, k, indices)[..., None]
        seen = np.arange(S - L, S)[:, None] + 1
        sums = np.cumsum(v, axis=1, dtype=np.float64)[:, S - L :]
        mean = np.repeat((sums / seen).astype(np.float32), H // H_kv, axis=0)
        out: NDArray[Any] = alpha * attend(q, k, v, indices) + (1 - alpha) * mean
        return out

    def _alpha(self, q: Array, k: Array, indices: Indices) -> Array:
        """The share (H, L) of the estimated softmax that the tokens `indices` (H, L, K) have."""
        groups = q.reshape(len(k), -1, *q.shape[1:])
        part = np.stack([self.inner.masked(x) for x in groups]).reshape(q.shape)
        whole = np.abs(q).sum(axis=-1, keepdims=True)
        share = np.abs(part).sum(axis=-1, keepdims=True) / np.where(whole == 0, 1, whole)
        x = part / np.sqrt(np.where(share == 0, 1, share))  # `attend` divides by sqrt(D)
        chosen, every = (attend(x, k, k, which, return_lse=True)[1] for which in (indices, None))
        alpha: Array = np.exp(chosen - every)
        return alpha

    def bytes_kept(self, D: int) -> float:
        """As SparQ. The sum of the values is one row per sequence, which is not counted."""
        return self.inner.bytes_kept(D)

    def bytes_read(self, D: int, S: int, budget: int) -> float:
        return self.inner.bytes_read(D, S, budget)

    def bytes_of_rows(self, D: int, S: int, budget: int) -> float:
        return 2.0 * 2 * D * min(budget, S)
