"""What attention costs while a model decodes: its time, and the bytes of KV cache that it reads."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from ..cache import KVCache
from ..checks import padded

NDArray = np.ndarray[Any, Any]


class Meter:
    """The attention callable of a cache, counting the steps of one token; prefill is left out.

    Attributes
    ----------
    seconds : float
        In attention, the appending of keys and values included.
    calls : int
        Attention steps: one a layer and token.
    bytes, dense_bytes : int
        Read by those steps, and what full attention would have read. Selected rows count once a
        query head, also where the heads of a group chose the same ones.
    """

    def __init__(self, cache: KVCache, budget: int | None) -> None:
        self._cache = cache
        self._budget = budget
        self._attend = cache.attention(budget)
        self.seconds = 0.0
        self.calls = 0
        self.bytes = 0
        self.dense_bytes = 0

    def __call__(self, layer: int, q: NDArray, k: NDArray, v: NDArray) -> NDArray:
        begin = time.perf_counter()
        out = self._attend(layer, q, k, v)
        if q.shape[-2] == 1:
            self.seconds += time.perf_counter() - begin
            self.calls += 1
            self._count(layer, q.shape[-3])
        return out

    def _count(self, layer: int, H: int) -> None:
        held = self._cache[layer]
        B, H_kv, S, D = held.k.shape
        row = 2 * D * held.k.itemsize  # a token's key and value
        dense = B * H_kv * S * row
        self.dense_bytes += dense
        if self._budget is None or held.codes is None or self._budget >= S:
            self.bytes += dense
        else:
            self.bytes += B * (H_kv * S * padded(D) // 4 + H * self._budget * row)


def amount(nbytes: float) -> str:
    """A number of bytes as people read it."""
    if nbytes < 1024:
        return f"{nbytes:.0f} B"
    for unit in ("KiB", "MiB"):
        nbytes /= 1024
        if nbytes < 1024:
            return f"{nbytes:.1f} {unit}"
    return f"{nbytes / 1024:.1f} GiB"
