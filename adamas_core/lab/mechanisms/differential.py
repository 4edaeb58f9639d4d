"""Differential attention: the difference of two softmax maps.

Ye et al., "Differential Transformer", arXiv 2410.05258.

    out    = (softmax(q1 k1^T / sqrt(D)) - lambda softmax(q2 k2^T / sqrt(D))) v
    lambda = exp(lq1.lk1) - exp(lq2.lk2) + lambda_init

Then each head is divided by its root mean square, and multiplied by (1 - lambda_init).

q has 2 H heads and k has 2 H_kv: first all heads of the first map, then all of the second. v has
H_kv heads of any width D_v, which is 2 D in the paper.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from . import softmax_attention
from .softmax_attention import Cache, start
from .tokens import Array, rms_norm

__all__ = ["Cache", "difference", "kept", "lambda_of", "parallel", "selected", "start", "step"]


def lambda_of(lq1: Array, lk1: Array, lq2: Array, lk2: Array, lambda_init: float) -> float:
    """lambda of a layer, from its four vectors (D,)."""
    return float(np.exp(lq1 @ lk1) - np.exp(lq2 @ lk2) + lambda_init)


def difference(
    q: Array, k: Array, v: Array, lam: float, mask: NDArray[np.bool_] | None = None
) -> Array:
    """The difference (H, L, D_v) of the maps of q (2 H, L, D) over k (2 H_kv, S, D), without norm.

    A mask (H, L, S) takes the place of the causal one, in both maps.
    """
    H, H_kv = len(q) // 2, len(v)
    first = softmax_attention.parallel(q[:H], k[:H_kv], v, mask)  # (H, L, D_v)
    second = softmax_attention.parallel(q[H:], k[H_kv:], v, mask)  # (H, L, D_v)
    return first - lam * second  # (H, L, D_v)


def parallel(q: Array, k: Array, v: Array, lam: float, lambda_init: float) -> Array:
    """Outputs (H, L, D_v) of q (2 H, L, D), k (2 H_kv, S, D) and v (H_kv, S, D_v)."""
    return (1 - lambda_init) * rms_norm(difference(q, k, v, lam))  # (H, L, D_v)


def step(state: Cache, q: Array, k: Array, v: Array, lam: float, lambda_init: float) -> Array:
    """The output (H, D_v) of a token with q (2 H, D), k (2 H_kv, D) and v (H_kv, D_v)."""
    keys, values = state.k.append(k), state.v.append(v)  # (2 H_kv, S, D), (H_kv, S, D_v)
    return parallel(q[:, None], keys, values, lam, lambda_init)[:, 0]  # (H, D_v)


def selected(q: Array, k: Array, v: Array, lam: float, chosen: NDArray[np.int32]) -> Array:
    """`difference` over chosen tokens (2 H, L, K); each head takes those of both of its maps."""
    H, L, S = len(q) // 2, q.shape[1], k.shape[1]
    mask = np.zeros((2 * H, L, S + 1), np.bool_)  # index -1 is the last place
    np.put_along_axis(mask, chosen, True, axis=-1)
    return difference(q, k, v, lam, (mask[:H] | mask[H:])[..., :S])  # (H, L, D_v)


def kept(S: int, H_kv: int, D: int, D_v: int) -> int:
    """Two keys and a value per token and KV head: 4 D with values of 2 D."""
    return S * H_kv * (2 * D + D_v)
