"""The forward pass of the Llama decoder in NumPy, float32, written to be read.

It runs Llama 2 and 3, Mistral, Qwen2, Qwen3, SmolLM2 and Gemma 3. These families differ in their
biases, in their norms, in the scaling of RoPE, in the windows of their layers, and in the gate of
the feed-forward network. Attention and its cache are an argument.

Letters: L new tokens, E hidden size, F feed-forward size, V vocabulary, H query heads,
H_kv key/value heads, D head_dim.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .. import checks
from . import rope
from .config import Config
from .weights import Array, Layer, Weights

Attention: TypeAlias = Callable[[int, Array, Array, Array], NDArray[Any]]


class Llama:
    """A decoder: token ids and their position in, logits out.

    Parameters
    ----------
    config : Config
    weights : Weights
        Their shapes are those of the config; `load` has checked them.
    """

    def __init__(self, config: Config, weights: Weights) -> None:
        self.config = config
        self.weights = weights

    def forward(
        self, tokens: ArrayLike, position: int, attention: Attention, last: bool = True
    ) -> Array:
        """Run new tokens through all layers.

        Parameters
        ----------
        tokens : (L,) ints
        position : int
            Position of the first new token in the sequence.
        attention : callable
            ``attention(layer, q, k, v) -> out``. It gets the new tokens only: q (H, L, D), k and v
            (H_kv, L, D), float32, after RoPE. It keeps the cache: it appends k and v, and then
            attends with the scale D ** -0.5. Each query sees the tokens up to its own, and in a
            layer with a window (`config.windows`) only the last of these. out is (H, L, D), any
            float dtype.
        last : bool
            Return the logits of the last token only.

        Returns
        -------
        (V,) float32, or (L, V) with `last=False`.

        Raises
        ------
        ValueError
            A token id is not in the vocabulary, `attention` returns another shape than q's, or it
            is that of a KVCache with other layers or windows than the model's, or with another
            number of tokens than `position`.
        """
        c, w = self.config, self.weights
        ids = self.token_ids(tokens)  # (L,)
        self._check_attention(attention, position)
        angles = {each: rope.cos_sin(each, position, len(ids)) for each in set(c.ropes)}
        x = w.embedding[ids]  # (L, E)
        x *= np.float32(c.embedding_scale)
        for index, layer in enumerate(w.layers):
            h = rms_norm(x, layer.attention_norm, c.norm_eps)  # (L, E)
            q, k, v = self._heads(h, layer)  # (L, H, D), (L, H_kv, D), (L, H_kv, D)
            cos, sin = angles[c.ropes[index]]  # (L, 1, D / 2)
            q = rope.rotate(q, cos, sin).swapaxes(0, 1)  # (H, L, D)
            k = rope.rotate(k, cos, sin).swapaxes(0, 1)  # (H_kv, L, D)
            v = v.swapaxes(0, 1)  # (H_kv, L, D)
            out = np.asarray(attention(index, q, k, v), np.float32)  # (H, L, D)
            if out.shape != q.shape:
                raise ValueError(f"attention returned shape {out.shape}, expected {q.shape}")
            out = out.swapaxes(0, 1).reshape(len(ids), -1)  # (L, H D)
            h = linear(out, layer.out, layer.out_bias)  # (L, E)
            x += self._post_norm(h, layer.attention_post_norm)  # (L, E)

            h = rms_norm(x, layer.ffn_norm, c.norm_eps)  # (L, E)
            gate, up = np.split(h @ layer.gate_up.T, 2, axis=1)  # (L, F), (L, F)
            h = GATED[c.activation](gate, up) @ layer.down.T  # (L, E)
            x += self._post_norm(h, layer.ffn_post_norm)  # (L, E)
        if last:
            x = x[-1:]  # (1, E)
        logits = rms_norm(x, w.norm, c.norm_eps) @ w.head.T  # (L or 1, V)
        return logits[0] if last else logits  # (V,) or (L, V)

    def _heads(self, h: Array, layer: Layer) -> tuple[Array, Array, Array]:
        """Queries (L, H, D), keys and values (L, H_kv, D) of h (L, E), before RoPE."""
        c = self.config
        qkv = linear(h, layer.qkv, layer.qkv_bias)  # (L, (H + 2 H_kv) D)
        qkv = qkv.reshape(len(h), -1, c.head_dim)  # (L, H + 2 H_kv, D)
        q, k, v = np.split(qkv, [c.heads, c.heads + c.kv_heads], axis=1)  # (L, H or H_kv, D)
        if layer.q_norm is not None and layer.k_norm is not None:
            q = rms_norm(q, layer.q_norm, c.norm_eps)  # (L, H, D)
            k = rms_norm(k, layer.k_norm, c.norm_eps)  # (L, H_kv, D)
        if c.query_scale != 1:
            q = q * np.float32(c.query_scale)  # (L, H, D)
        return q, k, v

    def _post_norm(self, h: Array, weight: Array | None) -> Array:
        """The norm of a block's result (L, E), in a model that has one there."""
        return h if weight is None else rms_norm(h, weight, self.config.norm_eps)

    def _check_attention(self, attention: Attention, position: int) -> None:
        """Reject a cache of other layers, or at another position: the text would be wrong.

        An attention that names no `windows` or `tokens` may do what it likes.
        """
        checks.at_least("Llama.forward", "position", position, 0)
        cache = getattr(attention, "__self__", attention)
        own = self.config.windows
        given = getattr(cache, "windows", None)
        if given is not None and tuple(given) != own:
            raise ValueError(
                f"Llama.forward: the cache of attention has layers with windows={given} and the "
                f"model has {own}; expected KVCache(layers, windows=model.config.windows)"
            )
        held = getattr(cache, "tokens", position)
        if held != position:
            raise ValueError(
                f"Llama.forward: the cache of attention holds {held} tokens and "
                f"position={position}; expected equal numbers"
            )

    def token_ids(self, tokens: ArrayLike) -> NDArray[np.integer[Any]]:
        """The tokens as an array, checked: a negative id would silently index from the end."""
        ids = np.asarray(tokens)
        if ids.ndim != 1 or ids.size == 0 or not np.issubdtype(ids.dtype, np.integer):
            raise ValueError(f"tokens is {tokens!r}, expected at least one integer in one row")
        if ids.min() < 0 or ids.max() >= self.config.vocab:
            raise ValueError(
                f"tokens has ids from {ids.min()} to {ids.max()}, "
                f"expected ids from 0 to {self.config.vocab - 1}"
            )
        return ids


def linear(x: Array, weight: Array, bias: Array | None) -> Array:
    """x (L, inputs) times weight (outputs, inputs), plus bias (outputs,): (L, outputs)."""
    y: Array = x @ weight.T  # (L, outputs)
    if bias is not None:
        y += bias  # (L, outputs)
    return y


def rms_norm(x: Array, weight: Array, eps: float) -> Array:
    """Scale x (..., N) to a root mean square of 1, then multiply by weight (N,)."""
    mean_square = np.vecdot(x, x)[..., None] / np.float32(x.shape[-1])  # (..., 1)
    y: Array = x / np.sqrt(mean_square + np.float32(eps))  # (..., N)
    y *= weight  # (..., N)
    return y


def swiglu(gate: Array, up: Array) -> Array:
    """silu(gate) * up, all (L, F), with silu(g) = g / (1 + exp(-g))."""
    y = np.negative(gate)  # (L, F)
    # For a very negative gate exp gives inf. The result is right: gate / inf = -0.
    with np.errstate(over="ignore"):
        np.exp(y, out=y)  # (L, F)
    y += 1  # (L, F)
    np.divide(gate, y, out=y)  # (L, F)
    y *= up  # (L, F)
    return y


def geglu(gate: Array, up: Array) -> Array:
    """gelu(gate) * up, all (L, F): gelu(g) = g / 2 (1 + tanh(sqrt(2 / pi) (g + 0.044715 g^3)))."""
    # For a large gate the cube gives inf. The result is right: tanh(inf) = 1.
    with np.errstate(over="ignore"):
        y = gate * gate  # (L, F)
        y *= np.float32(0.044715)
        y += 1
        y *= gate
        y *= np.float32(math.sqrt(2 / math.pi))
    np.tanh(y, out=y)
    y += 1
    y *= np.float32(0.5)
    y *= gate
    y *= up
    return y


GATED = {"silu": swiglu, "gelu": geglu}
