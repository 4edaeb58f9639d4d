"""The gradients of attention to chosen tokens, and of an append, in jax.numpy.

Only chosen rows of keys and values are read and changed. All sums are float32.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from .softmax import Softmax

Array = Any


def attention_gradient(
    kept: tuple[Array, Array, Array, Array, Array], softmax: Softmax, g_out: Array, g_lse: Array
) -> tuple[Array, Array, Array]:
    """The gradients of q, k and v, from those of out (B, H, L, D_v) and lse (B, H, L).

    `kept` are q, k, v, indices and lse. With weights p = exp(a - lse), a logit a has the gradient
    p (g_out.v - g_out.out + g_lse). With a soft cap, a = c tanh(x / c), and x has that times
    1 - (a / c)^2.
    """
    q, k, v, indices, lse = kept
    B, H, L, D = q.shape
    H_kv, Dv, K = k.shape[1], v.shape[3], indices.shape[-1]
    scale = D**-0.5 if softmax.scale is None else softmax.scale
    split = (B, H_kv, H // H_kv, L)
    queries, g_out = (x.astype(jnp.float32).reshape(*split, -1) for x in (q, g_out))
    lse, g_lse = lse.reshape(split), g_lse.reshape(split)
    at = jnp.maximum(indices, 0).reshape(B, H_kv, -1)
    chosen = indices.reshape(*split, K) >= 0  # the others have p = 0
    keys, values = (_rows(x, at).reshape(*split, K, -1) for x in (k, v))
    logits = scale * jnp.einsum("bhgld,bhglkd->bhglk", queries, keys)
    slope = jnp.float32(1)
    if softmax.soft_cap is not None:
        capped = jnp.tanh(logits / softmax.soft_cap)
        logits, slope = softmax.soft_cap * capped, 1 - jnp.square(capped)
    p = jnp.where(chosen, jnp.exp(logits - jnp.where(chosen, lse[..., None], 0)), 0)
    g_p = jnp.einsum("bhgld,bhglkd->bhglk", g_out, values)
    mean = (p * g_p).sum(axis=-1, keepdims=True)  # g_out . out
    g_logits = scale * slope * p * (g_p - mean + g_lse[..., None])
    g_q = jnp.einsum("bhglk,bhglkd->bhgld", g_logits, keys)
    g_keys = g_logits[..., None] * queries[..., None, :]
    g_values = p[..., None] * g_out[..., None, :]
    g_k = _added(k, at, g_keys.reshape(B, H_kv, -1, D))
    g_v = _added(v, at, g_values.reshape(B, H_kv, -1, Dv))
    return g_q.reshape(q.shape).astype(q.dtype), g_k, g_v


def append_gradient(given: Array, new: Array, lengths: Array, counts: Array) -> tuple[Array, Array]:
    """The gradients of new rows (B, H_kv, S, D), and of those that the cache had, from `given`.

    `new` is 0, 1, ... S - 1.
    """
    at = lengths[:, None] + new  # (B, S)
    real = (new < counts[:, None])[:, None, :, None]
    of_new = jax.vmap(lambda rows, i: rows[:, i])(given, jnp.minimum(at, given.shape[2] - 1))
    slot = jnp.arange(given.shape[2])
    written = (slot >= lengths[:, None]) & (slot < (lengths + counts)[:, None])
    return jnp.where(real, of_new, 0), jnp.where(written[:, None, :, None], 0, given)


def _rows(x: Array, at: Array) -> Array:
    """Rows of x (B, H, S, D) at the tokens (B, H, N), in float32."""
    return jax.vmap(jax.vmap(lambda rows, i: rows[i]))(x, at).astype(jnp.float32)


def _added(x: Array, at: Array, rows: Array) -> Array:
    """Zeros like x (B, H, S, D), plus rows (B, H, N, D) at the tokens (B, H, N)."""
    each = jax.vmap(jax.vmap(lambda zeros, i, row: zeros.at[i].add(row)))
    return each(jnp.zeros(x.shape, jnp.float32), at, rows).astype(x.dtype)
