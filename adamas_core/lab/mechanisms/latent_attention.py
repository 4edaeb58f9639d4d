"""Multi-head latent attention (MLA): all heads share one small row per token.

DeepSeek-AI, "DeepSeek-V2", arXiv 2405.04434.

    c_s = x_s W_dkv (D_c numbers) and one key r_s with RoPE (D_r numbers) are all that is cached.
    k_hs = [c_s W_uk_h, r_s],  v_hs = c_s W_uv_h
    out_h = softmax attention of [q_h, q_rope_h] over k_h and v_h, scale (D + D_r) ** -0.5

This is the plain form. The absorbed form never makes k and v:

    q_h.(c_s W_uk_h) = (q_h W_uk_h^T).c_s,  out_h = (sum over s of p_s c_s) W_uv_h

So it is MQA with one KV head: keys [c, r] of D_c + D_r numbers, and values that are the first D_c
of them. DeepSeek-V2 and V3 have D_c = 512 and D_r = 64.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from . import softmax_attention
from .tokens import Array, Rows


class Weights(NamedTuple):
    """The matrices that turn a latent row into keys and values."""

    uk: Array  # (H, D_c, D)
    uv: Array  # (H, D_c, D_v)


class Cache(NamedTuple):
    """[c, r] of all tokens: keys of the absorbed form. The values are the first D_c columns."""

    rows: Rows  # (1, S, D_c + D_r)
    weights: Weights

    @property
    def size(self) -> int:
        return self.rows.size


def parallel(q: Array, q_rope: Array, c: Array, k_rope: Array, weights: Weights) -> Array:
    """The plain form: outputs (H, L, D_v).

    q is (H, L, D), q_rope (H, L, D_r), c (1, S, D_c) and k_rope (1, S, D_r).
    """
    H = len(q)
    k = c @ weights.uk  # (H, S, D)
    keys = np.concatenate([k, np.repeat(k_rope, H, axis=0)], axis=-1)  # (H, S, D + D_r)
    queries = np.concatenate([q, q_rope], axis=-1)  # (H, L, D + D_r)
    return softmax_attention.parallel(queries, keys, c @ weights.uv)  # (H, L, D_v)


def absorbed_queries(q: Array, q_rope: Array, weights: Weights) -> Array:
    """Queries (H, L, D_c + D_r) of the absorbed form."""
    return np.concatenate([q @ weights.uk.swapaxes(1, 2), q_rope], axis=-1)  # (H, L, D_c + D_r)


def absorbed(q: Array, q_rope: Array, c: Array, k_rope: Array, weights: Weights) -> Array:
    """As `parallel`, over the latent rows as they are."""
    queries = absorbed_queries(q, q_rope, weights)  # (H, L, D_c + D_r)
    rows = np.concatenate([c, k_rope], axis=-1)  # (1, S, D_c + D_r)
    scale = (q.shape[-1] + q_rope.shape[-1]) ** -0.5
    latent = softmax_attention.parallel(queries, rows, c, scale=scale)  # (H, L, D_c)
    return latent @ weights.uv  # (H, L, D_v)


def start(c: Array, k_rope: Array, weights: Weights) -> Cache:
    """The cache after c (1, L, D_c) and k_rope (1, L, D_r)."""
    return Cache(Rows(np.concatenate([c, k_rope], axis=-1)), weights)


def step(state: Cache, q: Array, q_rope: Array, c: Array, k_rope: Array) -> Array:
    """The output (H, D_v) of a token with q (H, D), q_rope (H, D_r), c (1, D_c), k_rope (1, D_r).

    It is the absorbed form.
    """
    rows = state.rows.append(np.concatenate([c, k_rope], axis=-1))  # (1, S, D_c + D_r)
    queries = absorbed_queries(q[:, None], q_rope[:, None], state.weights)  # (H, 1, D_c + D_r)
    scale = (q.shape[-1] + q_rope.shape[-1]) ** -0.5
    values = rows[:, :, : c.shape[-1]]  # (1, S, D_c)
    latent = softmax_attention.parallel(queries, rows, values, scale=scale)  # (H, 1, D_c)
    return (latent @ state.weights.uv)[:, 0]  # (H, D_v)


def kept(S: int, D_c: int, D_r: int) -> int:
    """One row per token, for all heads."""
    return S * (D_c + D_r)
