"""FlashAttention: softmax attention in tiles, without a matrix of L x S weights.

Dao et al., "FlashAttention", arXiv 2205.14135.

For a tile of queries, the keys are read in tiles too. With the logits x_j of tile j:

    m_j = max(m_(j-1), max x_j)
    l_j = exp(m_(j-1) - m_j) l_(j-1) + sum exp(x_j - m_j)
    o_j = exp(m_(j-1) - m_j) o_(j-1) + exp(x_j - m_j) v_j

The output is o / l after the last tile. It equals softmax attention, and so do its cache and its
state.
"""

from __future__ import annotations

import numpy as np

from .softmax_attention import Cache, kept, parallel, start
from .tokens import Array, mixed, scores

__all__ = ["Cache", "chunked", "kept", "parallel", "start", "step"]


def chunked(q: Array, k: Array, v: Array, chunk: int = 64) -> Array:
    """Outputs (H, L, D_v) of the last L of S tokens, in tiles of chunk x chunk logits."""
    (H, L, _), (_, S, D_v) = q.shape, v.shape
    out = np.empty_like(q, shape=(H, L, D_v))
    for first in range(0, L, chunk):
        rows = q[:, first : first + chunk]  # (H, C, D)
        end = S - L + first + rows.shape[1]  # tokens that the tile's last query sees
        out[:, first : first + chunk] = _tile(rows, k[:, :end], v[:, :end], chunk)
    return out


def _tile(q: Array, k: Array, v: Array, chunk: int) -> Array:
    """Outputs (H, C, D_v) of one tile of queries, the last C of the S keys."""
    (H, C, _), (_, S, D_v) = q.shape, v.shape
    top = np.full_like(q, -np.inf, shape=(H, C, 1))
    total = np.zeros_like(q, shape=(H, C, 1))
    out = np.zeros_like(q, shape=(H, C, D_v))
    for first in range(0, S, chunk):
        keys, values = k[:, first : first + chunk], v[:, first : first + chunk]  # (H_kv, C', D)
        logits = scores(q, keys)  # (H, C, C')
        if first + chunk > S - C:  # only the last tiles hold tokens that some query does not see
            seen = np.arange(S - C, S)[:, None] >= np.arange(
                first, first + keys.shape[1]
            )  # (C, C')
            logits = np.where(seen, logits, -np.inf)  # (H, C, C')
        new = np.maximum(top, logits.max(axis=-1, keepdims=True))  # (H, C, 1)
        weights = np.exp(logits - new)  # (H, C, C')
        shrink = np.exp(top - new)  # (H, C, 1)
        total = shrink * total + weights.sum(axis=-1, keepdims=True)  # (H, C, 1)
        out = shrink * out + mixed(weights, values)  # (H, C, D_v)
        top = new
    return out / total  # (H, C, D_v)


def step(state: Cache, q: Array, k: Array, v: Array) -> Array:
    """The output (H, D_v) of a token with q (H, D), k (H_kv, D) and v (H_kv, D_v)."""
    keys, values = state.k.append(k), state.v.append(v)  # (H_kv, S, D), (H_kv, S, D_v)
    return chunked(q[:, None], keys, values)[:, 0]  # (H, D_v)
