"""Looped decoding (Ouro): the same layers run several times, and a gate says when to stop.

Zhu et al., "Scaling Latent Reasoning via Looped Language Models", arXiv 2510.25741.

    h_j      = stack(h_(j-1)) for j = 1 .. T, where h_0 is the embedding
    lambda_j = sigmoid(h_j.w_gate)
    p_j      = lambda_j (1 - lambda_1) ... (1 - lambda_(j-1)) for j < T, and p_T is the rest

The logits are those of the first loop at which p_1 + ... + p_j reaches a threshold. Every loop has
a cache of its own, because its keys and values differ. So a token that stops early still passes the
later loops: tokens after it read them there.

The stack here is one layer of one kind: softmax attention and a linear map, each added to its
input after an RMS norm. That is enough for the loops, the gate and the caches.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from . import softmax_attention
from .softmax_attention import Cache
from .tokens import Array, rms_norm, sigmoid


class Weights(NamedTuple):
    """One layer, and the exit gate."""

    q: Array  # (H, E, D)
    k: Array  # (H_kv, E, D)
    v: Array  # (H_kv, E, D)
    out: Array  # (H, D, E)
    mlp: Array  # (E, E)
    gate: Array  # (E,)


def exit_probabilities(lam: Array) -> Array:
    """p (T, ...) of gates lambda (T, ...) from 0 to 1; the last gate is not read."""
    stays = np.cumprod(1 - lam[:-1], axis=0)  # (T - 1, ...)
    before = np.concatenate([np.ones_like(lam[:1]), stays])  # (T, ...)
    return before * np.concatenate([lam[:-1], np.ones_like(lam[:1])])  # (T, ...)


def exit_loop(p: Array, threshold: float) -> NDArray[np.int64]:
    """The first loop (...) whose sum of p (T, ...) reaches the threshold, or else the last."""
    reached = np.cumsum(p, axis=0) >= threshold  # (T, ...)
    reached[-1] = True
    return np.argmax(reached, axis=0)  # (...)


def _layer(h: Array, out: Array, weights: Weights) -> Array:
    """The hidden states (1, L, E) after a layer, from its heads' outputs (H, L, D)."""
    h = h + (out @ weights.out).sum(axis=0, keepdims=True)  # (1, L, E)
    return h + rms_norm(h) @ weights.mlp  # (1, L, E)


def _projected(h: Array, weights: Weights) -> tuple[Array, Array, Array]:
    """q (H, L, D), k and v (H_kv, L, D) of hidden states (1, L, E)."""
    x = rms_norm(h)  # (1, L, E)
    return x @ weights.q, x @ weights.k, x @ weights.v


def parallel(x: Array, weights: Weights, loops: int) -> tuple[Array, Array]:
    """Hidden states (T, L, E) after each loop, and p (T, L), of embeddings x (1, L, E)."""
    states, h = [], x
    for _ in range(loops):
        h = _layer(h, softmax_attention.parallel(*_projected(h, weights)), weights)  # (1, L, E)
        states.append(h)
    hidden = np.concatenate(states)  # (T, L, E)
    return hidden, exit_probabilities(sigmoid(hidden @ weights.gate))  # (T, L)


def start(x: Array, weights: Weights, loops: int) -> list[Cache]:
    """A cache per loop after embeddings x (1, L, E)."""
    caches, h = [], x
    for _ in range(loops):
        q, k, v = _projected(h, weights)
        caches.append(softmax_attention.start(k, v))
        h = _layer(h, softmax_attention.parallel(q, k, v), weights)  # (1, L, E)
    return caches


def step(state: list[Cache], x: Array, weights: Weights) -> tuple[Array, Array]:
    """Hidden states (T, E) and p (T,) of a token with embedding x (1, E)."""
    hidden, h = [], x[:, None]
    for cache in state:
        q, k, v = (part[:, 0] for part in _projected(h, weights))  # (heads, D) each
        h = _layer(h, softmax_attention.step(cache, q, k, v)[:, None], weights)  # (1, 1, E)
        hidden.append(h[0])
    states = np.concatenate(hidden)  # (T, E)
    return states, exit_probabilities(sigmoid(states @ weights.gate))  # (T,)


def kept(S: int, H_kv: int, D: int, loops: int) -> int:
    """A key and a value per token, KV head and loop."""
    return loops * softmax_attention.kept(S, H_kv, D)
