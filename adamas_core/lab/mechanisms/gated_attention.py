"""Gated attention: softmax attention, times a sigmoid gate per head and channel.

Qiu et al., "Gated Attention for Large Language Models", arXiv 2505.06708. Qwen3-Next has it in one
layer of four.

    out_t = sigmoid(g_t) * softmax attention of q_t,  g_t = x_t W_g

`*` is by channel, and the output projection comes after it. Because the gate comes after the sums,
any choice of tokens for softmax attention serves here too.
"""

from __future__ import annotations

from . import softmax_attention
from .softmax_attention import Cache, kept, start
from .tokens import Array, sigmoid

__all__ = ["Cache", "kept", "parallel", "start", "step"]


def parallel(q: Array, k: Array, v: Array, g: Array) -> Array:
    """Outputs (H, L, D_v) of q (H, L, D), k and v (H_kv, S, ...), and logits g (H, L, D_v)."""
    return sigmoid(g) * softmax_attention.parallel(q, k, v)  # (H, L, D_v)


def step(state: Cache, q: Array, k: Array, v: Array, g: Array) -> Array:
    """The output (H, D_v) of a token with q (H, D), k (H_kv, D), v (H_kv, D_v), g (H, D_v)."""
    return sigmoid(g) * softmax_attention.step(state, q, k, v)  # (H, D_v)
