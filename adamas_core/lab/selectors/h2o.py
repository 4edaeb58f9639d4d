"""H2O: heavy hitters, which are the tokens of the most attention so far, and recent tokens.

Zhang et al., "H2O: Heavy-Hitter Oracle for Efficient Generative Inference of Large Language
Models", arXiv 2306.14048.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from ... import checks
from .largest import Array, Indices, blocks, checked


@dataclass(frozen=True)
class H2O:
    """Half of the budget for recent tokens, half for those of the most accumulated attention.

    An evicted token is gone for all later queries. This is the only method here that also frees K
    and V, and that cannot come back to a token. `fit` accumulates the dense attention of the
    prefix's queries, (H, S0). The block then goes on as decoding does. Before its query attends,
    each new token evicts one kept token: of those that are not recent, the one with the smallest
    sum, the oldest among equals. Then the query's attention over the kept tokens adds to their
    sums. Tokens between the fitted prefix and the block start with sums of 0, and so do all tokens
    without a fit.
    """

    name: str = "H2O"
    accumulated: Array | None = field(default=None, repr=False, compare=False)  # (H, S0)

    def fit(self, q: Array, k: Array) -> H2O:
        checked(self.name, q, k, 1)
        H, S, D = q.shape
        grouped = q.reshape(len(k), -1, S, D) * np.float32(D**-0.5)
        sums = np.zeros(grouped.shape[:3], np.float32)
        for g, rows, own in blocks(len(k), H // len(k), S, S):
            first, seen = int(own[0]), int(own[-1]) + 1
            p = grouped[g, :, rows] @ k[g, :seen].T  # (G, l, seen)
            p[..., first:] += np.where(np.arange(first, seen) > own[:, None], -np.inf, 0)
            p -= p.max(axis=-1, keepdims=True)
            np.exp(p, out=p)
            share = 1 / p.sum(axis=-1, keepdims=True)  # (G, l, 1)
            sums[g, :, :seen] += (share.swapaxes(-1, -2) @ p)[:, 0]
        return replace(self, accumulated=sums.reshape(H, S))

    def __call__(self, q: Array, k: Array, budget: int) -> Indices:
        K = checked(self.name, q, k, budget)
        H, L, D = q.shape
        S = k.shape[1]
        sums = np.zeros((H, S), np.float32)
        if self.accumulated is not None:
            S0 = self.accumulated.shape[1]
            if len(self.accumulated) != H or S0 > S - L:
                raise ValueError(
                    f"{self.name}: fitted to {len(self.accumulated)} heads and {S0} tokens, but "
                    f"{checks.shown('q', q)} are the last of {S} tokens; expected as many heads "
                    f"and at least {S0} tokens before them"
                )
            sums[:, :S0] = self.accumulated
        scaled = q * np.float32(D**-0.5)
        recent = K - K // 2  # the query's own token is one of them
        kv_head = np.repeat(np.arange(len(k)), H // len(k))[:, None]
        head = np.arange(H)[:, None]
        indices = np.full((H, L, K), -1, np.int32)
        kept = self._heaviest(sums[:, : S - L], K)  # (H, n), ascending, n <= K
        for i in range(L):
            own = S - L + i
            if kept.shape[1] == K:
                old = kept[:, : K - recent + 1]  # all but the last recent - 1 and the new one
                least = sums[head, old].argmin(axis=1)  # the first, which is the oldest
                kept = kept[np.arange(K) != least[:, None]].reshape(H, K - 1)
            kept = np.concatenate([kept, np.full((H, 1), own)], axis=1)
            indices[:, i, : kept.shape[1]] = kept
            logits = np.vecdot(k[kv_head, kept], scaled[:, i, None])  # (H, n)
            p = np.exp(logits - logits.max(axis=1, keepdims=True))
            sums[head, kept] += p / p.sum(axis=1, keepdims=True)
        return indices

    def _heaviest(self, sums: Array, K: int) -> Indices:
        """Tokens left of the prefix: its last K - K // 2, and the K // 2 heaviest before them."""
        H, n = sums.shape
        if n <= K:
            return np.broadcast_to(np.arange(n, dtype=np.int32), (H, n)).copy()
        rank = sums.copy()
        rank[:, n - (K - K // 2) :] = np.inf
        newest_first = np.argsort(-rank[:, ::-1], axis=1, kind="stable")[:, :K]
        return np.sort(n - 1 - newest_first, axis=1).astype(np.int32)

    def bytes_kept(self, D: int) -> float:
        """A sum in float16, counted for one query head per KV head, as in models without groups."""
        return 2.0

    def bytes_read(self, D: int, S: int, budget: int) -> float:
        """The sums of the kept tokens."""
        return 2.0 * min(budget, S)
