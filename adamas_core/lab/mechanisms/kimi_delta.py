"""Kimi Delta Attention (KDA): the gated delta rule with a gate per channel of the key.

Kimi Team, "Kimi Linear", arXiv 2510.26692. It has three layers of KDA for each layer of MLA.

    u_t   = beta_t (v_t - S_(t-1)^T (alpha_t * k_t))
    S_t   = diag(alpha_t) S_(t-1) + k_t u_t^T
    out_t = S_t^T q_t

alpha (H, L, D) is from 0 to 1, and `*` is by channel. With equal channels it is `delta_rule`.

In chunks, with g_t = alpha_1 * ... * alpha_t and the state S_0 before the chunk:

    u_t   = beta_t (v_t - S_0^T (g_t * k_t) - sum over s < t of (k_s.((g_t / g_s) * k_t)) u_s)
    out_t = S_0^T (g_t * q_t) + sum over s <= t of (k_s.((g_t / g_s) * q_t)) u_s
"""

from __future__ import annotations

import numpy as np

from .delta_rule import State, kept
from .tokens import Array, in_chunks

__all__ = ["State", "chunked", "kept", "parallel", "start", "step"]


def parallel(q: Array, k: Array, v: Array, alpha: Array, beta: Array) -> Array:
    """Outputs (H, L, D_v) of q and k (H, L, D), v (H, L, D_v), alpha (H, L, D), beta (H, L)."""
    return chunked(q, k, v, alpha, beta, chunk=max(q.shape[1], 1))  # (H, L, D_v)


def chunked(q: Array, k: Array, v: Array, alpha: Array, beta: Array, chunk: int = 16) -> Array:
    """As `parallel`, with one triangular system per chunk. A chunk has C x C x D ratios."""
    state = start(k[:, :0], v[:, :0], alpha[:, :0], beta[:, :0])
    return in_chunks(_block, state, (q, k, v, alpha, beta), chunk)  # (H, L, D_v)


def _block(state: State, q: Array, k: Array, v: Array, alpha: Array, beta: Array) -> Array:
    """The outputs (H, C, D_v) of the next C tokens; the state moves on by them."""
    C = q.shape[1]
    g = np.cumprod(alpha, axis=1)  # (H, C, D)
    ratio = _ratios(alpha)  # (H, C, C, D)
    right = (ratio * k[:, None]).swapaxes(2, 3)  # (H, C, D, C), of s
    kk = (k[:, :, None] @ right)[:, :, 0]  # (H, C, C)
    qk = (q[:, :, None] @ right)[:, :, 0]  # (H, C, C)
    system = np.eye(C, dtype=q.dtype) + np.tril(beta[..., None] * kk, -1)  # (H, C, C)
    u = np.linalg.solve(system, beta[..., None] * (v - (g * k) @ state.S))  # (H, C, D_v)
    out = (g * q) @ state.S + qk @ u  # (H, C, D_v)
    left = (k * ratio[:, -1]).swapaxes(1, 2)  # (H, D, C)
    state.S = g[:, -1, :, None] * state.S + left @ u  # (H, D, D_v)
    return out


def _ratios(alpha: Array) -> Array:
    """alpha_(s+1) * ... * alpha_t (H, C, C, D) for s <= t, else 0; no division."""
    C = alpha.shape[1]
    t, s = np.arange(C)[:, None, None], np.arange(C)[:, None]  # (C, 1, 1), (C, 1)
    factors = np.where(t > s, alpha[:, :, None], 1)  # (H, C, C, D)
    return np.where(t >= s, np.cumprod(factors, axis=1), 0)  # (H, C, C, D)


def start(k: Array, v: Array, alpha: Array, beta: Array) -> State:
    """The state after k (H, L, D), v (H, L, D_v), alpha (H, L, D) and beta (H, L)."""
    (H, L, D), D_v = k.shape, v.shape[2]
    state = State(np.zeros_like(v, shape=(H, D, D_v)))
    for first in range(0, L, 16):
        k_, v_, a, b = (x[:, first : first + 16] for x in (k, v, alpha, beta))
        _block(state, k_, k_, v_, a, b)
    return state


def step(state: State, q: Array, k: Array, v: Array, alpha: Array, beta: Array) -> Array:
    """The output (H, D_v) of a token with q and k (H, D), v (H, D_v), alpha (H, D), beta (H,)."""
    faded = alpha[:, :, None] * state.S  # (H, D, D_v)
    u = beta[:, None] * (v - (k[:, None] @ faded)[:, 0])  # (H, D_v)
    state.S = faded + k[:, :, None] * u[:, None]  # (H, D, D_v)
    return (q[:, None] @ state.S)[:, 0]  # (H, D_v)
