"""A decoder of one's own in NumPy: two layers with random weights, and a KVCache for attention.

It reads 2,000 tokens, then decodes 16 tokens with different budgets. It prints how far the outputs
are from those under dense attention.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from adamas_core import KVCache, Selection

LAYERS, E, H, H_KV, D, F = 2, 128, 8, 2, 32, 256  # E hidden size, F feed-forward size
PROMPT, STEPS = 2000, 16

Array = np.ndarray[Any, Any]
Attention = Callable[[int, Array, Array, Array], Array]

rng = np.random.default_rng(0)


def weight(inputs: int, outputs: int, gain: float = 1.0) -> Array:
    return rng.standard_normal((inputs, outputs), dtype=np.float32) * np.float32(gain / inputs**0.5)


# Queries have a larger gain, so that a query prefers a few tokens, as in a trained model.
layers = [
    {
        "q": weight(E, H * D, gain=3),
        "k": weight(E, H_KV * D),
        "v": weight(E, H_KV * D),
        "out": weight(H * D, E),
        "up": weight(E, F),
        "down": weight(F, E),
    }
    for _ in range(LAYERS)
]


def norm(x: Array) -> Array:
    y: Array = x / np.sqrt(np.mean(x * x, -1, keepdims=True) + 1e-6)
    return y


def rope(x: Array, position: int) -> Array:
    """Rotate x (heads, L, D): the pairs (i, i + D/2) turn by position * 10000 ** (-2i / D)."""
    turns = 10000.0 ** (-np.arange(0, D, 2) / D)  # (D / 2,)
    angles = (position + np.arange(x.shape[1]))[:, None] * turns  # (L, D / 2)
    cos, sin = np.cos(angles).astype(x.dtype), np.sin(angles).astype(x.dtype)
    a, b = np.split(x, 2, axis=-1)
    return np.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)


def forward(x: Array, position: int, attention: Attention) -> Array:
    """Run L new tokens x (L, E), the first at `position`, through all layers: (L, E)."""
    L = len(x)
    for i, w in enumerate(layers):
        h = norm(x)
        q = rope((h @ w["q"]).reshape(L, H, D).swapaxes(0, 1), position)  # (H, L, D)
        k = rope((h @ w["k"]).reshape(L, H_KV, D).swapaxes(0, 1), position)  # (H_KV, L, D)
        v = (h @ w["v"]).reshape(L, H_KV, D).swapaxes(0, 1)  # (H_KV, L, D)
        out = attention(i, q, k, v)  # (H, L, D): appends k and v, then attends
        x = x + out.swapaxes(0, 1).reshape(L, H * D) @ w["out"]
        x = x + np.maximum(norm(x) @ w["up"], 0) @ w["down"]
    return norm(x)


tokens = rng.standard_normal((PROMPT + STEPS, E), dtype=np.float32)  # stand-ins for embeddings


def decode(budget: int | None) -> Array:
    """Outputs (STEPS, E) of the tokens after the prompt, one at a time."""
    cache = KVCache(LAYERS, selection=Selection(sinks=4, recent=16))
    attention = cache.attention(budget)
    forward(tokens[:PROMPT], 0, attention.prefill)  # dense
    steps = range(PROMPT, PROMPT + STEPS)
    return np.concatenate([forward(tokens[n : n + 1], n, attention) for n in steps])


dense = decode(None)
errors = {}
for budget in (32, 128, 512, PROMPT + STEPS):
    sparse = decode(budget)
    errors[budget] = np.linalg.norm(sparse - dense) / np.linalg.norm(dense)
    print(f"budget {budget:4} of about {PROMPT} tokens: relative error {errors[budget]:.1e}")
assert errors[512] < errors[128] < errors[32] < 0.5
assert errors[PROMPT + STEPS] < 1e-5  # a budget of all tokens is dense attention
