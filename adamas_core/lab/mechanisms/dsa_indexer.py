"""DeepSeek sparse attention (DSA): a small indexer scores all tokens, attention takes the best.

DeepSeek-AI, "DeepSeek-V3.2", arXiv 2512.02556.

    I_ts  = sum over indexer heads j of w_tj ReLU(qI_tj.kI_s)
    out_t = softmax attention of q_t to the `budget` tokens s <= t with the largest I_ts

The indexer has a few heads of D_I numbers, and one key kI that they share. All query heads take
the same tokens. `indexer_fit` learns the indexer from the attention of a model.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from . import softmax_attention
from .tokens import Array, Rows, causal, scores


class Cache(NamedTuple):
    """Keys and values of all tokens, and the indexer's keys."""

    k: Rows  # (H_kv, S, D)
    v: Rows  # (H_kv, S, D)
    k_index: Rows  # (1, S, D_I)
    budget: int


def index(q_index: Array, k_index: Array, w: Array) -> Array:
    """I (L, S) of indexer queries (H_I, L, D_I), their key (1, S, D_I), and weights w (H_I, L)."""
    each = np.maximum(scores(q_index, k_index, scale=1), 0)  # (H_I, L, S)
    return (w[..., None] * each).sum(axis=0)  # (L, S)


def chosen(I: Array, budget: int) -> NDArray[np.bool_]:
    """The mask (L, S) of the `budget` largest scores among the tokens that each query sees.

    The queries are the last L of the S tokens.
    """
    L, S = I.shape
    seen = np.where(causal(L, S), I, -np.inf)  # (L, S)
    best = np.argpartition(seen, S - min(budget, S), axis=-1)[:, -budget:]  # (L, K)
    mask = np.zeros((L, S), np.bool_)
    np.put_along_axis(mask, best, True, axis=-1)
    return mask & causal(L, S)  # (L, S)


def parallel(
    q: Array, k: Array, v: Array, q_index: Array, k_index: Array, w: Array, budget: int
) -> Array:
    """Outputs (H, L, D) of q (H, L, D), k and v (H_kv, S, D); other inputs as in `index`."""
    mask = chosen(index(q_index, k_index, w), budget)  # (L, S)
    return softmax_attention.parallel(q, k, v, mask)  # (H, L, D)


def start(k: Array, v: Array, k_index: Array, budget: int) -> Cache:
    """The cache after k and v (H_kv, L, D) and k_index (1, L, D_I)."""
    return Cache(Rows(k), Rows(v), Rows(k_index), budget)


def step(
    state: Cache, q: Array, k: Array, v: Array, q_index: Array, k_index: Array, w: Array
) -> Array:
    """The output (H, D) of a token with q (H, D), k and v (H_kv, D).

    Its indexer inputs are q_index (H_I, D_I), k_index (1, D_I) and w (H_I,).
    """
    keys, values = state.k.append(k), state.v.append(v)  # (H_kv, S, D) each
    I = index(q_index[:, None], state.k_index.append(k_index), w[:, None])  # (1, S)
    (best,) = np.nonzero(chosen(I, state.budget)[0])  # (K,)
    everything = np.ones((1, len(best)), np.bool_)  # (1, K)
    rows = keys[:, best], values[:, best]  # (H_kv, K, D) each
    return softmax_attention.parallel(q[:, None], *rows, everything)[:, 0]  # (H, D)


def kept(S: int, H_kv: int, D: int, D_I: int) -> int:
    """A key and a value per token and KV head, and the indexer's key."""
    return S * (2 * H_kv * D + D_I)
