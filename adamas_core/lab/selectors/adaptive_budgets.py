"""Budgets that adapt to how peaked each head's attention is, at an equal total."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import numpy as np

from .largest import HELD, Array, Indices, checked, largest
from .simulated_codes import SimulatedCodes


@dataclass(frozen=True)
class AdaptiveBudgets:
    """The H * budget tokens that the H heads of a layer need most, for each query.

    Each head has `least` of the budget for its best tokens. The rest of H * budget goes to the
    largest estimated attention weights of all heads, with at most `most` times the budget per
    head. So a head whose attention is spread takes tokens from a head that needs few. Indices are
    as wide as the largest share. `inner` makes the estimates: metric "weighted", one choice per
    head.
    """

    name: str = "weighted, plain codes, adaptive budgets"
    inner: SimulatedCodes = field(default_factory=SimulatedCodes)
    least: float = 0.25
    most: float = 4.0

    def __post_init__(self) -> None:
        if not 0 < self.least <= 1 <= self.most < math.inf:
            raise ValueError(
                f"{self.name}: least={self.least} and most={self.most}; expected 0 < least <= 1 "
                "and most >= 1, finite"
            )
        inner = self.inner
        if inner.metric != "weighted" or inner.group or inner.refine:
            raise ValueError(
                f"{self.name}: inner is {inner}; expected metric='weighted' without group and "
                "refine"
            )

    def fit(self, q: Array, k: Array) -> AdaptiveBudgets:
        return replace(self, inner=self.inner.fit(q, k))

    def __call__(self, q: Array, k: Array, budget: int) -> Indices:
        K = checked(self.name, q, k, budget)
        H, L, D = q.shape
        H_kv, S = k.shape[:2]
        grouped = q.reshape(H_kv, H // H_kv, L, D)
        step = max(HELD // (H * S), 1)
        parts = []
        for first in range(0, L, step):
            rows = slice(first, min(first + step, L))
            own = np.arange(S - L, S)[rows]
            logits = np.concatenate(
                [self.inner.estimates(g, grouped[g, :, rows], k[g], own) for g in range(H_kv)]
            )  # (H, l, S)
            parts.append(largest(logits, own, self._shares(logits, K)))
        width = max(part.shape[-1] for part in parts)
        indices = np.full((H, L, width), -1, np.int32)
        for i, part in enumerate(parts):
            indices[:, i * step : i * step + part.shape[1], : part.shape[-1]] = part
        return indices

    def _shares(self, logits: Array, K: int) -> Indices:
        """Tokens per head and query, (H, l): H * K for each query over all heads."""
        H, l, S = logits.shape
        weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
        weights /= weights.sum(axis=-1, keepdims=True)
        most = min(int(self.most * K), S)
        best = -np.sort(-np.partition(weights, S - most, axis=-1)[..., S - most :], axis=-1)
        best[..., : max(int(self.least * K), 1)] = np.inf
        needed = best.swapaxes(0, 1).reshape(l, H * most)
        taken = np.argsort(-needed, axis=1, kind="stable")[:, : H * K]
        head = np.arange(H)[:, None, None]
        shares: Indices = (taken // most == head).sum(axis=-1, dtype=np.int32)
        return shares

    def bytes_kept(self, D: int) -> float:
        return self.inner.bytes_kept(D)

    def bytes_read(self, D: int, S: int, budget: int) -> float:
        return self.inner.bytes_read(D, S, budget)
