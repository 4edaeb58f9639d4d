"""A prefix that a model has read densely, and sparse attention for the tokens after it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import copy
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..cache import KVCache
from ..llama import Attention, Llama
from ..ops import attend
from .selectors import Method, attended

Array = NDArray[np.float32]
# Of a place, new queries, and all keys and values.
Placed: TypeAlias = Callable[[int, Array, Array, Array], NDArray[Any]]
CHUNK = 512  # tokens per forward pass while the prefix is read


class Window:
    """The last keys and values of a layer with a sliding window."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.k: Array | None = None  # (H_kv, fewer than size, D)
        self.v: Array | None = None

    def attend(self, q: Array, k: Array, v: Array) -> NDArray[Any]:
        """Append k and v (H_kv, L, D), and attend to the window of each query (H, L, D)."""
        if self.k is not None and self.v is not None:
            k, v = np.concatenate([self.k, k], axis=1), np.concatenate([self.v, v], axis=1)
        first = max(k.shape[1] - self.size + 1, 0)
        self.k, self.v = k[:, first:], v[:, first:]
        out: NDArray[Any] = attend(q, k, v, None, window=self.size)
        return out


class Prefix:
    """A model's cache after tokens that were read densely.

    Selectors choose in the layers without a sliding window. The others attend to their whole
    window. H query heads, H_kv KV heads, D head_dim.

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
    layers : tuple of int
        The layers without a window. A place below is an index into them.
    cache : KVCache
        Keys and values by place. It has no codes, because each selector makes its own data from
        the keys.
    q : list of arrays (H, S0, D), float32
        The prefix's queries by place. Selectors are fitted to them.
    """

    def __init__(
        self,
        model: Llama,
        tokens: ArrayLike,
        room: int,
        on_prefill: Callable[[int, int], object] | None = None,
    ) -> None:
        ids = np.asarray(tokens)
        windows = model.config.windows
        self.model = model
        self.length = len(ids)
        self.layers = tuple(i for i, window in enumerate(windows) if window is None)
        if not self.layers:
            raise ValueError("every layer of the model has a window; expected one without")
        self._place = {layer: place for place, layer in enumerate(self.layers)}
        count = len(self.layers)
        self.cache = KVCache(count, dense_layers=range(count), capacity=len(ids) + room)
        self._windows = {i: Window(size) for i, size in enumerate(windows) if size is not None}
        parts: list[list[Array]] = [[] for _ in range(count)]

        def reading(layer: int, q: Array, k: Array, v: Array) -> NDArray[Any]:
            if layer in self._place:
                parts[self._place[layer]].append(q)
            return self.dense(layer, q, k, v)

        for first in range(0, len(ids), CHUNK):
            chunk = ids[first : first + CHUNK]
            model.forward(chunk, first, reading)
            if on_prefill is not None:
                on_prefill(first + len(chunk), len(ids))
        self.q: list[Array] = []
        for part in parts:
            self.q.append(np.concatenate(part, axis=1))
            part.clear()  # a second copy of all layers would be half a gigabyte at 8192 tokens
        self._windows_after = {layer: copy(window) for layer, window in self._windows.items()}

    def keys_values(self, place: int) -> tuple[Array, Array]:
        """The cached k and v (H_kv, S, D) of a layer without a window."""
        held = self.cache[place]
        return held.k[0], held.v[0]

    def rewind(self) -> None:
        """Forget the tokens after the prefix."""
        self.cache.truncate(self.length)
        self._windows = {layer: copy(window) for layer, window in self._windows_after.items()}

    def fit(self, method: Method) -> list[Method]:
        """The selector or form, fitted to the prefix of each layer."""
        return [
            method.fit(q, self.keys_values(place)[0][:, : self.length])
            for place, q in enumerate(self.q)
        ]

    def each(self, attention: Placed) -> Attention:
        """Attention for the decoder: `attention` gets the layers without a window, by place.

        Their keys and values are appended first.
        """

        def attend_(layer: int, q: Array, k: Array, v: Array) -> NDArray[Any]:
            if layer in self._windows:
                return self._windows[layer].attend(q, k, v)
            place = self._place[layer]
            self.cache.append(k, v, place)
            return attention(place, q, *self.keys_values(place))

        return attend_

    def dense(self, layer: int, q: Array, k: Array, v: Array) -> NDArray[Any]:
        """Attention for the decoder: append, and attend to all that the model sees."""
        return self.each(lambda _, q, keys, values: attend(q, keys, values, None))(layer, q, k, v)

    def sparse(self, fitted: Sequence[Method], budget: int, dense_layers: int = 0) -> Attention:
        """Attention for the decoder: append, choose, attend. The first `dense_layers` take all."""

        def attention(place: int, q: Array, keys: Array, values: Array) -> NDArray[Any]:
            if self.layers[place] < dense_layers:
                out: NDArray[Any] = attend(q, keys, values, None)
                return out
            return attended(fitted[place], q, keys, values, budget)

        return self.each(attention)
