"""DeltaNet and Gated DeltaNet: a state that corrects what it holds about a key.

Yang et al., "Parallelizing Linear Transformers with the Delta Rule", arXiv 2406.06484 (chunks).
Yang et al., "Gated Delta Networks", arXiv 2412.06464.

    u_t   = beta_t (v_t - alpha_t S_(t-1)^T k_t)
    S_t   = alpha_t S_(t-1) + k_t u_t^T
    out_t = S_t^T q_t

With S^T for the matrix of the papers this is S_t = alpha_t S_(t-1) (I - beta_t k_t k_t^T) +
beta_t v_t k_t^T. DeltaNet has alpha = 1. alpha and beta (H, L) are from 0 to 1, and keys have
length 1. D_v is the width of the values.

In chunks (WY form), with g_t = alpha_1 ... alpha_t and the state S_0 before the chunk:

    u_t   = beta_t (v_t - g_t S_0^T k_t - sum over s < t of (g_t / g_s) (k_s.k_t) u_s)
    out_t = g_t S_0^T q_t + sum over s <= t of (g_t / g_s) (k_s.q_t) u_s

The first line is one triangular system for all u of the chunk.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .tokens import Array, in_chunks, scores


@dataclass
class State:
    """What is held about all keys."""

    S: Array  # (H, D, D_v)

    @property
    def size(self) -> int:
        return self.S.size


def parallel(q: Array, k: Array, v: Array, alpha: Array, beta: Array) -> Array:
    """Outputs (H, L, D_v) of q and k (H, L, D), v (H, L, D_v), alpha and beta (H, L)."""
    return chunked(q, k, v, alpha, beta, chunk=max(q.shape[1], 1))  # (H, L, D_v)


def chunked(q: Array, k: Array, v: Array, alpha: Array, beta: Array, chunk: int = 64) -> Array:
    """As `parallel`, with one triangular system per chunk."""
    state = start(k[:, :0], v[:, :0], alpha[:, :0], beta[:, :0])
    return in_chunks(_block, state, (q, k, v, alpha, beta), chunk)  # (H, L, D_v)


def _block(state: State, q: Array, k: Array, v: Array, alpha: Array, beta: Array) -> Array:
    """The outputs (H, C, D_v) of the next C tokens; the state moves on by them."""
    C = q.shape[1]
    g = np.cumprod(alpha, axis=1)[..., None]  # (H, C, 1)
    ratio = _ratios(alpha)  # (H, C, C)
    system = np.eye(C, dtype=q.dtype) + np.tril(beta[..., None] * ratio * scores(k, k, 1), -1)
    u = np.linalg.solve(system, beta[..., None] * (v - g * (k @ state.S)))  # (H, C, D_v)
    out = g * (q @ state.S) + (ratio * scores(q, k, 1)) @ u  # (H, C, D_v)
    left = (k * ratio[:, -1, :, None]).swapaxes(1, 2)  # (H, D, C)
    state.S = g[:, -1:] * state.S + left @ u  # (H, D, D_v)
    return out


def _ratios(alpha: Array) -> Array:
    """alpha_(s+1) ... alpha_t (H, C, C) for s <= t, else 0; no division, so alpha may be 0."""
    C = alpha.shape[1]
    after = np.arange(C)[:, None] > np.arange(C)  # (C, C), t > s
    factors = np.where(after, alpha[:, :, None], 1)  # (H, C, C)
    return np.tril(np.cumprod(factors, axis=1))  # (H, C, C)


def start(k: Array, v: Array, alpha: Array, beta: Array) -> State:
    """The state after k (H, L, D), v (H, L, D_v), alpha and beta (H, L)."""
    (H, L, D), D_v = k.shape, v.shape[2]
    state = State(np.zeros_like(v, shape=(H, D, D_v)))
    for first in range(0, L, 64):
        k_, v_, a, b = (x[:, first : first + 64] for x in (k, v, alpha, beta))
        _block(state, k_, k_, v_, a, b)
    return state


def step(state: State, q: Array, k: Array, v: Array, alpha: Array, beta: Array) -> Array:
    """The output (H, D_v) of a token with q and k (H, D), v (H, D_v), alpha and beta (H,)."""
    faded = alpha[:, None, None] * state.S  # (H, D, D_v)
    u = beta[:, None] * (v - (k[:, None] @ faded)[:, 0])  # (H, D_v)
    state.S = faded + k[:, :, None] * u[:, None]  # (H, D, D_v)
    return (q[:, None] @ state.S)[:, 0]  # (H, D_v)


def kept(S: int, H: int, D: int, D_v: int) -> int:
    """A matrix per head, for any number of tokens."""
    return H * D * D_v
