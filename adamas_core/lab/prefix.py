"""A prefix that a model has read densely, and sparse attention for the tokens after it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..cache import KVCache
from ..llama import Attention, Llama
from ..ops import attend
from .selectors import Selector

Array = NDArray[np.float32]
CHUNK = 512  # tokens per forward pass while the prefix is read


class Prefix:
    """A model's cache after tokens that were read densely.

    H query heads, H_kv KV heads, D head_dim.

    Parameters
    ----------
    model : Llama
    tokens : (S0,) ints
        At least one.
    room : int
        Tokens that will be appended.
    on_prefill : callable, optional
        ``on_prefill(done, total)`` after each chunk.

    Attributes
    ----------
    cache : KVCache
        Without codes, because each selector makes its own data from the keys.
    q : list of arrays (H, S0, D), float32
        The prefix's queries, one array per layer. Selectors are fitted to them.
    """

    def __init__(
        self,
        model: Llama,
        tokens: ArrayLike,
        room: int,
        on_prefill: Callable[[int, int], object] | None = None,
    ) -> None:
        ids = np.asarray(tokens)
        layers = model.config.layers
        self.model = model
        self.length = len(ids)
        self.cache = KVCache(layers, dense_layers=range(layers), capacity=len(ids) + room)
        parts: list[list[Array]] = [[] for _ in range(layers)]
        dense = self.cache.attention(None)

        def reading(layer: int, q: Array, k: Array, v: Array) -> NDArray[Any]:
            parts[layer].append(q)
            out: NDArray[Any] = dense(layer, q, k, v)
            return out

        for first in range(0, len(ids), CHUNK):
            chunk = ids[first : first + CHUNK]
            model.forward(chunk, first, reading)
            if on_prefill is not None:
                on_prefill(first + len(chunk), len(ids))
        self.q: list[Array] = []
        for part in parts:
            self.q.append(np.concatenate(part, axis=1))
            part.clear()  # a second copy of all layers would be half a gigabyte at 8192 tokens

    def keys_values(self, layer: int) -> tuple[Array, Array]:
        """The cached k and v (H_kv, S, D) of a layer."""
        held = self.cache[layer]
        return held.k[0], held.v[0]

    def fit(self, selector: Selector) -> list[Selector]:
        """The selector, fitted to the prefix of each layer."""
        return [
            selector.fit(q, self.keys_values(layer)[0][:, : self.length])
            for layer, q in enumerate(self.q)
        ]

    def sparse(self, fitted: Sequence[Selector], budget: int, dense_layers: int = 0) -> Attention:
        """Attention for the decoder: append, choose, attend. The first `dense_layers` take all."""

        def attention(layer: int, q: Array, k: Array, v: Array) -> NDArray[Any]:
            self.cache.append(k, v, layer)
            keys, values = self.keys_values(layer)
            indices = None if layer < dense_layers else fitted[layer](q, keys, budget)
            out: NDArray[Any] = attend(q, keys, values, indices)
            return out

        return attention
