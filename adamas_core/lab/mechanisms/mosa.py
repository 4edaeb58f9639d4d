"""Mixture of sparse attention (MoSA): each head chooses the tokens that it works on.

Piekos et al., "Mixture of Sparse Attention: Content-Based Learnable Sparse Attention via
Expert-Choice Routing", arXiv 2505.00315.

    r_t   = sigmoid(x_t w_r), a score per head and token
    I     = the `budget` tokens with the largest r of the whole sequence
    out_t = r_t sum over s in I, s <= t of p_ts v_s for t in I, and 0 for all other t

p is the softmax of q_t.k_s / sqrt(D) over the tokens in I up to t. q, k and v are computed for the
tokens in I alone: `from_tokens` does that. The other functions take q, k and v of all tokens, and
use those of I.

`parallel` chooses over the whole sequence, as in training. So a later token can push an earlier one
out of I, and the choice, though not the attention, looks ahead. `step` chooses among the tokens so
far: its output at t is that of `parallel` over the tokens up to t.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .tokens import Array, mixed, scores, sigmoid, softmax


def chosen(r: Array, budget: int) -> NDArray[np.int64]:
    """The tokens (H, K) of the largest scores r (H, L), ascending; of equal ones the latest."""
    order = np.argsort(r, axis=-1, kind="stable")  # (H, L)
    return np.sort(order[:, max(r.shape[1] - budget, 0) :], axis=-1)  # (H, K)


def _among(q: Array, k: Array, v: Array, r: Array) -> Array:
    """Outputs (H, K, D) of chosen tokens, which are in order: q, k, v (H, K, D) and r (H, K)."""
    K = q.shape[1]
    seen = np.tril(np.ones((K, K), np.bool_))  # (K, K)
    return r[..., None] * mixed(softmax(scores(q, k), seen), v)  # (H, K, D)


def _scattered(out: Array, I: NDArray[np.int64], L: int) -> Array:
    """The outputs (H, K, D) of the tokens I (H, K) at their places (H, L, D), 0 elsewhere."""
    H, _, D = out.shape
    whole = np.zeros_like(out, shape=(H, L, D))
    whole[np.arange(H)[:, None], I] = out
    return whole


def parallel(q: Array, k: Array, v: Array, r: Array, budget: int) -> Array:
    """Outputs (H, L, D) of q, k and v (H, L, D) and scores r (H, L) from 0 to 1."""
    I = chosen(r, budget)  # (H, K)
    heads = np.arange(len(q))[:, None]  # (H, 1)
    return _scattered(_among(q[heads, I], k[heads, I], v[heads, I], r[heads, I]), I, q.shape[1])


def from_tokens(x: Array, w_r: Array, w_q: Array, w_k: Array, w_v: Array, budget: int) -> Array:
    """Outputs (H, L, D) of hidden states x (1, L, E), with w_r (H, E) and matrices (H, E, D)."""
    r = sigmoid(x[0] @ w_r.T).T  # (H, L)
    I = chosen(r, budget)  # (H, K)
    rows = x[0][I]  # (H, K, E)
    scored = np.take_along_axis(r, I, axis=1)  # (H, K)
    out = _among(rows @ w_q, rows @ w_k, rows @ w_v, scored)  # (H, K, D)
    return _scattered(out, I, x.shape[1])  # (H, L, D)


@dataclass
class Cache:
    """Keys, values and scores of the `budget` best tokens of each head, in order."""

    k: Array  # (H, K, D)
    v: Array  # (H, K, D)
    r: Array  # (H, K)
    budget: int

    @property
    def size(self) -> int:
        return self.k.size + self.v.size + self.r.size


def start(k: Array, v: Array, r: Array, budget: int) -> Cache:
    """The cache after k and v (H, L, D) and r (H, L)."""
    I, heads = chosen(r, budget), np.arange(len(k))[:, None]  # (H, K), (H, 1)
    return Cache(k[heads, I], v[heads, I], r[heads, I], budget)


def step(state: Cache, q: Array, k: Array, v: Array, r: Array) -> Array:
    """The output (H, D) of a token with q, k and v (H, D) and r (H,); 0 if it is not chosen."""
    keys = np.concatenate([state.k, k[:, None]], axis=1)  # (H, K + 1, D)
    values = np.concatenate([state.v, v[:, None]], axis=1)  # (H, K + 1, D)
    r_all = np.concatenate([state.r, r[:, None]], axis=1)  # (H, K + 1)
    I, heads = chosen(r_all, state.budget), np.arange(len(k))[:, None]  # (H, K), (H, 1)
    state.k, state.v, state.r = keys[heads, I], values[heads, I], r_all[heads, I]
    newest = r_all.shape[1] - 1
    taken = I[:, -1] == newest  # (H,)
    everything = np.ones((1, I.shape[1]), np.bool_)  # (1, K)
    out = mixed(softmax(scores(q[:, None], state.k), everything), state.v)[:, 0]  # (H, D)
    return np.where(taken, r, 0)[:, None] * out  # (H, D)


def kept(S: int, H: int, D: int, budget: int) -> int:
    """A key, a value and a score for the chosen tokens of each head."""
    return min(S, budget) * H * (2 * D + 1)
