"""Linear attention: a fixed state in place of a cache.

Katharopoulos et al., "Transformers are RNNs", arXiv 2006.16236. With a decay and without the
division it is the lightning attention of MiniMax-01, arXiv 2501.08313.

    S_t   = gamma S_(t-1) + phi(k_t) v_t^T
    z_t   = gamma z_(t-1) + phi(k_t)
    out_t = phi(q_t)^T S_t / phi(q_t).z_t

phi(x) = elu(x) + 1. The functions here take the features phi(q) and phi(k) in place of q and k. F
is the number of features; D_v is the width of the values.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .tokens import Array, in_chunks, mixed, scores


def phi(x: Array) -> Array:
    """The features elu(x) + 1: x + 1 above 0, and exp(x) below; any shape."""
    return np.where(x > 0, x + 1, np.exp(np.minimum(x, 0)))


@dataclass
class State:
    """The sums over all tokens."""

    S: Array  # (H, F, D_v)
    z: Array  # (H, F)
    decay: Array  # (H,), gamma
    divides: bool  # whether the output is divided by phi(q).z

    @property
    def size(self) -> int:
        return self.S.size + self.z.size


def parallel(
    q: Array, k: Array, v: Array, decay: Array | None = None, divides: bool = True
) -> Array:
    """Outputs (H, L, D_v) of features q and k (H, L, F) and v (H, L, D_v); decay is (H,) or 1."""
    H, L, _ = q.shape
    gamma = np.ones(H, q.dtype) if decay is None else decay  # (H,)
    back = np.arange(L)[:, None] - np.arange(L)  # (L, L)
    powers = np.where(back >= 0, gamma[:, None, None] ** np.maximum(back, 0), 0)  # (H, L, L)
    weights = scores(q, k, scale=1) * powers.astype(q.dtype)  # (H, L, L)
    total = weights.sum(axis=-1, keepdims=True) if divides else 1  # (H, L, 1)
    return mixed(weights, v) / total  # (H, L, D_v)


def chunked(
    q: Array,
    k: Array,
    v: Array,
    decay: Array | None = None,
    divides: bool = True,
    chunk: int = 64,
) -> Array:
    """As `parallel`: within a chunk by the matrix of weights, before it by the state."""
    state = start(k[:, :0], v[:, :0], decay, divides)
    return in_chunks(_block, state, (q, k, v), chunk)  # (H, L, D_v)


def _block(state: State, q: Array, k: Array, v: Array) -> Array:
    """The outputs (H, C, D_v) of the next C tokens; the state moves on by them."""
    C = q.shape[1]
    gamma = state.decay[:, None, None]  # (H, 1, 1)
    later = (gamma ** np.arange(1, C + 1)[:, None]).astype(q.dtype)  # (H, C, 1), since the state
    total = (q @ state.z[..., None]) * later  # (H, C, 1)
    out = (q @ state.S) * later  # (H, C, D_v)
    ones = np.ones_like(v, shape=(*v.shape[:2], 1))  # (H, C, 1)
    inner = parallel(q, k, np.concatenate([v, ones], axis=-1), state.decay, False)  # (H, C, D_v+1)
    out, total = out + inner[..., :-1], total + inner[..., -1:]  # (H, C, D_v), (H, C, 1)
    left = _decayed(k, state.decay)  # (H, C, F)
    state.S = state.S * later[:, -1:] + left.swapaxes(1, 2) @ v  # (H, F, D_v)
    state.z = state.z * later[:, -1] + left.sum(axis=1)  # (H, F)
    return out / total if state.divides else out  # (H, C, D_v)


def start(k: Array, v: Array, decay: Array | None = None, divides: bool = True) -> State:
    """The state after features k (H, L, F) and v (H, L, D_v)."""
    gamma = np.ones(len(k), k.dtype) if decay is None else decay  # (H,)
    left = _decayed(k, gamma)  # (H, L, F)
    return State(left.swapaxes(1, 2) @ v, left.sum(axis=1), gamma, divides)


def _decayed(k: Array, gamma: Array) -> Array:
    """The features (H, L, F), each times gamma to the number of tokens after it."""
    after = np.arange(k.shape[1] - 1, -1, -1)[:, None]  # (L, 1)
    return k * (gamma[:, None, None] ** after).astype(k.dtype)  # (H, L, F)


def step(state: State, q: Array, k: Array, v: Array) -> Array:
    """The output (H, D_v) of a token with features q and k (H, F) and v (H, D_v)."""
    gamma = state.decay[:, None]  # (H, 1)
    state.S = gamma[..., None] * state.S + k[:, :, None] * v[:, None]  # (H, F, D_v)
    state.z = gamma * state.z + k  # (H, F)
    out = (q[:, None] @ state.S)[:, 0]  # (H, D_v)
    return out / (q * state.z).sum(axis=-1, keepdims=True) if state.divides else out  # (H, D_v)


def kept(S: int, H: int, F: int, D_v: int) -> int:
    """A matrix and a vector per head, for any number of tokens."""
    return H * F * (D_v + 1)
