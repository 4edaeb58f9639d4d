"""Multi-token attention: a convolution mixes the logits of near queries, near keys, and heads.

Golovneva et al., "Multi-Token Attention", arXiv 2504.00927.

    x_ts  = q_t.k_s / sqrt(D) for s <= t, else 0
    y_ts  = sum over i = 0 .. A - 1 and b = 0 .. B - 1 of theta_ib x_(t - i)(s + B // 2 - b)
    p     = softmax of y over s <= t
    out_h = sum over heads g of w_hg p_g v_g

Then each head is divided by its root mean square, and multiplied by `depth`, a number that grows
with the layer. theta (H, A, B) has A queries, the current one first, and B keys. w (H, H) is block
diagonal, because heads are mixed within groups.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .tokens import Array, Rows, causal, rms_norm, scores, softmax


def delta(H: int, queries: int, keys: int) -> Array:
    """The kernel theta (H, A, B) that changes nothing."""
    theta = np.zeros((H, queries, keys))
    theta[:, 0, keys // 2] = 1
    return theta


def convolved(x: Array, theta: Array) -> Array:
    """y (H, L, S) of logits x (H, L, S) that are 0 where they are not seen."""
    (_, L, S), (_, A, B) = x.shape, theta.shape
    left = B - 1 - B // 2  # zeros before the first key
    wide = np.zeros_like(x, shape=(len(x), L + A - 1, S + B - 1))
    wide[:, A - 1 :, left : left + S] = x
    y = np.zeros_like(x)
    for i in range(A):
        for b in range(B):
            part = wide[:, A - 1 - i : A - 1 - i + L, B - 1 - b : B - 1 - b + S]  # (H, L, S)
            y = y + theta[:, i, b, None, None] * part
    return y


def _out(y: Array, v: Array, w: Array, depth: float) -> Array:
    """Outputs (H, L, D) of the last L of S tokens, from the mixed logits y (H, L, S)."""
    H, L, S = y.shape
    p = softmax(y, causal(L, S))  # (H, L, S)
    each = p @ np.repeat(v, H // len(v), axis=0)  # (H, L, D)
    mixed = (w @ each.reshape(H, -1)).reshape(each.shape)  # (H, L, D)
    return depth * rms_norm(mixed)  # (H, L, D)


def parallel(q: Array, k: Array, v: Array, theta: Array, w: Array, depth: float = 1) -> Array:
    """Outputs (H, L, D) of q (H, L, D), k and v (H_kv, L, D)."""
    L = q.shape[1]
    x = np.where(causal(L, L), scores(q, k), 0)  # (H, L, L)
    return _out(convolved(x, theta), v, w, depth)  # (H, L, D)


@dataclass
class Cache:
    """Keys and values of all tokens, and the last A - 1 queries."""

    k: Rows  # (H_kv, S, D)
    v: Rows  # (H_kv, S, D)
    q: Array  # (H, up to A - 1, D)

    @property
    def size(self) -> int:
        return self.k.size + self.v.size + self.q.size


def start(k: Array, v: Array, q: Array, theta: Array) -> Cache:
    """The cache after k and v (H_kv, L, D). It needs the queries q (H, L, D) of these tokens."""
    A = theta.shape[1]
    return Cache(Rows(k), Rows(v), q[:, max(q.shape[1] - A + 1, 0) :])


def step(
    state: Cache, q: Array, k: Array, v: Array, theta: Array, w: Array, depth: float = 1
) -> Array:
    """The output (H, D) of a token with q (H, D), k and v (H_kv, D)."""
    keys, values = state.k.append(k), state.v.append(v)  # (H_kv, S, D) each
    last = np.concatenate([state.q, q[:, None]], axis=1)  # (H, up to A, D)
    L, S = last.shape[1], keys.shape[1]
    x = np.where(causal(L, S), scores(last, keys), 0)  # (H, L, S)
    state.q = last[:, max(L - theta.shape[1] + 1, 0) :]  # (H, up to A - 1, D)
    return _out(convolved(x, theta)[:, -1:], values, w, depth)[:, 0]  # (H, D)


def kept(S: int, H: int, H_kv: int, D: int, queries: int) -> int:
    """A key and a value per token and KV head, and the last queries."""
    return 2 * S * H_kv * D + min(S, queries - 1) * H * D
