"""LoLCATs: softmax attention in a window, and linear attention with learned features before it.

Zhang et al., "LoLCATs: On Low-Rank Linearizing of Large Language Models", arXiv 2410.10254.

    phi(x) = [softmax(x W), softmax(-x W)]
    a_ts   = gamma exp(q_t.k_s / sqrt(D))   for t - s < window
    a_ts   = phi_q(q_t).phi_k(k_s)          for earlier tokens
    out_t  = sum over s <= t of a_ts v_s / sum over s <= t of a_ts

W has one matrix per head for queries and one for keys. gamma is one number per head. `lolcats_fit`
learns all three, so that the outputs match those of softmax attention (stage 1, attention
transfer). Stage 2 of the paper, LoRA on the model's weights, needs training and is not here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from .tokens import Array, Rows, mixed, scores


class Maps(NamedTuple):
    """The learned numbers."""

    w_q: Array  # (H, D, F / 2)
    w_k: Array  # (H, D, F / 2)
    gamma: Array  # (H,), above 0


def phi(x: Array, w: Array) -> Array:
    """Features (H, L, F) of x (H, L, D), with w (H, D, F / 2)."""
    u = x @ w  # (H, L, F / 2)
    halves = []
    for y in (u, -u):
        weights = np.exp(y - y.max(axis=-1, keepdims=True))  # (H, L, F / 2)
        halves.append(weights / weights.sum(axis=-1, keepdims=True))  # (H, L, F / 2)
    return np.concatenate(halves, axis=-1)  # (H, L, F)


def weights(q: Array, k: Array, maps: Maps, window: int) -> Array:
    """The matrix a (H, L, S) of the last L of S tokens; k has H heads."""
    L, S = q.shape[1], k.shape[1]
    back = np.arange(S - L, S)[:, None] - np.arange(S)  # (L, S)
    near = maps.gamma[:, None, None] * np.exp(scores(q, k))  # (H, L, S)
    far = scores(phi(q, maps.w_q), phi(k, maps.w_k), scale=1)  # (H, L, S)
    return np.where(back < 0, 0, np.where(back < window, near, far))  # (H, L, S)


def parallel(q: Array, k: Array, v: Array, maps: Maps, window: int) -> Array:
    """Outputs (H, L, D) of q, k and v (H, L, D); KV heads are repeated before."""
    a = weights(q, k, maps, window)  # (H, L, L)
    return mixed(a, v) / a.sum(axis=-1, keepdims=True)  # (H, L, D)


@dataclass
class State:
    """The last window - 1 keys and values, and the sums over all tokens before them."""

    k: Rows  # (H, up to window - 1, D)
    v: Rows  # (H, up to window - 1, D)
    S: Array  # (H, F, D)
    z: Array  # (H, F)
    maps: Maps
    window: int

    @property
    def size(self) -> int:
        return self.k.size + self.v.size + self.S.size + self.z.size


def start(k: Array, v: Array, maps: Maps, window: int) -> State:
    """The state after k and v (H, L, D)."""
    L = k.shape[1]
    before = max(L - window + 1, 0)  # tokens that the next query sees through the sums
    old, values = phi(k[:, :before], maps.w_k), v[:, :before]  # (H, before, F), (H, before, D)
    near = Rows(k[:, before:]), Rows(v[:, before:])
    return State(*near, old.swapaxes(1, 2) @ values, old.sum(axis=1), maps, window)


def step(state: State, q: Array, k: Array, v: Array) -> Array:
    """The output (H, D) of a token with q, k and v (H, D)."""
    keys, values = state.k.append(k), state.v.append(v)  # (H, up to window, D) each
    near = state.maps.gamma[:, None, None] * np.exp(scores(q[:, None], keys))  # (H, 1, W)
    feature = phi(q[:, None], state.maps.w_q)  # (H, 1, F)
    out = mixed(near, values) + feature @ state.S  # (H, 1, D)
    total = near.sum(axis=-1) + (feature @ state.z[..., None])[..., 0]  # (H, 1)
    if keys.shape[1] == state.window:  # the oldest token leaves the window before the next query
        old = phi(keys[:, :1], state.maps.w_k)[:, 0]  # (H, F)
        state.S = state.S + old[:, :, None] * values[:, :1]  # (H, F, D)
        state.z = state.z + old  # (H, F)
        state.k, state.v = Rows(keys[:, 1:]), Rows(values[:, 1:])
    return out[:, 0] / total  # (H, D)


def kept(S: int, H: int, D: int, F: int, window: int) -> int:
    """A window of keys and values per head, and a matrix and a vector."""
    return 2 * min(S, window - 1) * H * D + H * F * (D + 1)
