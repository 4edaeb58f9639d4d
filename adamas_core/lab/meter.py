"""The cost of attention while a model decodes: time, and bytes of KV cache that are read."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from ..cache import KVCache
from .code_bytes import code_bytes, tail_bytes

NDArray = np.ndarray[Any, Any]


class Meter:
    """The attention callable of a cache, which counts decode steps of one token, not prefill.

    Attributes
    ----------
    seconds : float
        Time in attention, including the appending of keys and values.
    calls : int
        Attention steps: one per layer and token.
    bytes, dense_bytes : int
        Bytes that those steps read, and bytes that full attention would have read. Selected rows
        count once per query head, also if the heads of a group chose the same ones. A tail adds
        the codes of its coded tokens, per query head.
    """

    def __init__(self, cache: KVCache, budget: int | None) -> None:
        self._cache = cache
        self._budget = budget
        self._attend = cache.attention(budget)
        self.restart()

    def restart(self) -> None:
        """Count from zero."""
        self.seconds = 0.0
        self.calls = 0
        self.bytes = 0
        self.dense_bytes = 0

    @property
    def tokens(self) -> int:
        """The tokens in the cache."""
        return self._attend.tokens

    @property
    def windows(self) -> tuple[int | None, ...]:
        """The windows of the cache's layers."""
        return self._attend.windows

    def prefill(self, layer: int, q: NDArray, k: NDArray, v: NDArray) -> NDArray:
        """Attention for a prompt, which is dense and is not counted."""
        out: NDArray = self._attend.prefill(layer, q, k, v)
        return out

    def __call__(self, layer: int, q: NDArray, k: NDArray, v: NDArray) -> NDArray:
        begin = time.perf_counter()
        out: NDArray = self._attend(layer, q, k, v)
        if q.shape[-2] == 1:
            self.seconds += time.perf_counter() - begin
            self.calls += 1
            self._count(layer, q.shape[-3])
        return out

    def _count(self, layer: int, H: int) -> None:
        held = self._cache[layer]
        B, H_kv, S, D = held.k.shape
        window = self._cache.windows[layer]
        if window is not None:
            S = min(S, window)  # a layer keeps more tokens than it reads
        row = 2 * D * held.k.itemsize  # a token's key and value
        dense = B * H_kv * S * row
        self.dense_bytes += dense
        if self._budget is None or held.codes is None or self._budget >= S:
            self.bytes += dense
        else:
            centered = held.codes.centers is not None
            self.bytes += B * (int(H_kv * S * code_bytes(D, centered)) + H * self._budget * row)
            coded = min(self._cache.selection.tail or 0, S - self._budget)
            if coded:
                self.bytes += B * int(H * tail_bytes(D, self._budget, coded))
