"""A cache as the attention of a decoder: append, then attend."""

from __future__ import annotations

from typing import Any

import numpy as np

from . import checks
from .decode import attend_layer, check_queries, check_tokens
from .dispatch import Array, array_module, returner, views
from .layers import Layer, Layers
from .reference.layout import TILE
from .selection import Selection
from .softmax import Softmax

NDArray = np.ndarray[Any, Any]


class CacheAttention:
    """The function ``f(layer, q, k, v) -> out`` that a decoder calls, from `KVCache.attention`.

    It appends k and v to the cache, and then attends. A call on several new tokens gives what as
    many calls on one token each give: every query selects by the codes of its own step. So it
    verifies a draft. `prefill` does the same with dense attention, for a prompt.

    If a call fails or is interrupted, the layer is as before.
    """

    __slots__ = ("_budget", "_layers", "_selection", "_softmax")

    def __init__(
        self, layers: Layers, selection: Selection, budget: int | None, softmax: Softmax
    ) -> None:
        where = "KVCache.attention"
        if budget is not None:
            checks.at_least(where, "budget", budget, 1)
            checks.forced(where, budget, selection)
        self._layers = layers
        self._selection = selection
        self._budget = budget
        self._softmax = softmax

    def __call__(self, layer: int, q: Array, k: Array, v: Array) -> Array:
        """Append k and v of L tokens, and attend with q (B, H, L, D) to `budget` tokens each."""
        return self._step(layer, q, k, v, self._budget)

    def prefill(self, layer: int, q: Array, k: Array, v: Array) -> Array:
        """Append k and v of L tokens, and attend to all tokens with q (B, H, L, D)."""
        return self._step(layer, q, k, v, None)

    @property
    def windows(self) -> tuple[int | None, ...]:
        """The windows of the cache's layers."""
        return self._layers.windows

    @property
    def tokens(self) -> int:
        """The tokens in the cache: the position of the next one.

        Raises
        ------
        ValueError
            The layers have different numbers of tokens, as after an interrupted forward pass.
        """
        counts = [layer.lengths.longest for layer in self._layers.all()]
        if min(counts) != max(counts):
            raise ValueError(
                f"KVCache.attention: the layers of the cache hold from {min(counts)} to "
                f"{max(counts)} tokens; expected equal numbers, call truncate({min(counts)})"
            )
        return counts[0]

    def _step(self, layer: int, q: Array, k: Array, v: Array, budget: int | None) -> Array:
        where = "KVCache.attention"
        checks.layer(where, layer, len(self._layers))
        a, b, c = views(q=q, k=k, v=v)
        checks.keys_values(where, b, c, (3, 4))
        shape = b.shape if b.ndim == 4 else (1, *b.shape)
        q4 = check_queries(where, a, shape, self._selection, budget, self._softmax)
        if a.ndim != b.ndim or a.shape[-2] != b.shape[-2]:
            raise ValueError(
                f"{where}: {checks.shown('q', a)} and {checks.shown('k', b)}; expected "
                "the same tokens and as many axes"
            )
        if b.ndim == 3:
            b, c = b[None], c[None]
        before = self._layers[layer].lengths
        try:
            outs = self._runs(where, layer, q4, b, c, budget)
        except BaseException:
            if self._layers[layer].lengths is not before:
                self._layers.cut_one(layer, before.each if before.ragged else before.longest)
            raise
        xp = array_module(str(self._layers[layer].backend))
        out = outs[0] if len(outs) == 1 else xp.concatenate(outs, axis=2)
        return returner(q)(out.reshape(*a.shape[:-1], c.shape[-1]))

    def _runs(
        self, where: str, layer: int, q: Any, k: Any, v: Any, budget: int | None
    ) -> list[Any]:
        """The attention of the new tokens, in runs of tokens whose steps see the same codes."""
        outs: list[Any] = []
        done, L = 0, k.shape[2]
        while done < L or not outs:
            n = L if budget is None else min(_run(self._layers[layer]), L - done)
            part = slice(done, done + n)
            self._layers.add(where, layer, k[:, :, part], v[:, :, part], n)
            held = self._layers[layer]
            check_tokens(where, q[:, :, part], held)
            outs.append(
                attend_layer(where, q[:, :, part], held, self._selection, budget, self._softmax)[0]
            )
            done += n
        return outs


def _run(layer: Layer) -> int:
    """How many tokens can be appended at once, so that the steps of all of them see equal codes.

    A centered tile is coded again when it becomes full. A single step sees that from the last token
    of the tile on. Thresholds that are not settled may change with every token.
    """
    options = layer.options
    if options.dense or options.window is not None:
        return checks.MAX_TOKENS
    if options.centered:
        each = layer.lengths.each if len(layer.lengths.each) else np.zeros(1, int)
        return int((((each + 1) // TILE + 1) * TILE - 1 - each).min())
    settled = options.thresholds is not None or (
        layer.sample is not None and layer.sample.lasting is not None  # type: ignore[union-attr]
    )
    return checks.MAX_TOKENS if settled else 1
