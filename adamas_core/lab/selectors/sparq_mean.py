"""SparQ with its mean value for the tokens that it does not choose, arXiv 2312.04985."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...ops import attend
from .largest import Array, Indices, blocks, checked, hide
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
        H, L, D = q.shape
        H_kv, S, _ = k.shape
        x = q.reshape(H_kv, -1, L, D)
        chosen = indices.reshape(H_kv, H // H_kv, L, -1)
        alpha = np.empty(x.shape[:3], np.float32)
        for g, rows, own in blocks(H_kv, H // H_kv, L, S):
            queries, found = x[g, :, rows], chosen[g, :, rows]
            part = self.inner.masked(queries)
            whole = np.abs(queries).sum(axis=-1)
            share = np.abs(part).sum(axis=-1) / np.where(whole == 0, 1, whole)
            heat = np.sqrt(D * np.where(share == 0, 1, share))[..., None]
            logits = hide(part @ k[g].T / heat, own)
            p = np.exp(logits - logits.max(axis=-1, keepdims=True))
            taken = np.where(found >= 0, np.take_along_axis(p, found, axis=-1), 0)
            alpha[g, :, rows] = taken.sum(axis=-1) / p.sum(axis=-1)
        return alpha.reshape(H, L)

    def bytes_kept(self, D: int) -> float:
        """As SparQ. The sum of the values is one row per sequence, which is not counted."""
        return self.inner.bytes_kept(D)

    def bytes_read(self, D: int, S: int, budget: int) -> float:
        return self.inner.bytes_read(D, S, budget)

    def bytes_of_rows(self, D: int, S: int, budget: int) -> float:
        return 2.0 * 2 * D * min(budget, S)
