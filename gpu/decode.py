"""A decode step that a CUDA graph can hold: lengths on the device, memory of its own."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from adamas_core.reference.quantize import TILE

from . import _launch
from ._kernels import APPEND
from ._launch import Array
from ._rows import element, leading_strides, words
from .attend import attend_into, no_splits
from .quantize import encode_step
from .select import plan, select_coded

THREADS = 256


class DeviceCache(NamedTuple):
    """Keys, values and codes, not centered, of one layer, with room for `capacity` tokens."""

    k: Array  # (B, H_kv, capacity, D)
    v: Array
    planes: Array  # (2, B, H_kv, T, 8, P, 8), uint64
    thresholds: Array  # (H_kv, 3), float32
    lengths: Array  # (B,), int32


def device_cache(
    B: int, H_kv: int, D: int, dtype: Any, capacity: int, thresholds: Array
) -> DeviceCache:
    """A cache of no tokens yet."""
    xp = _launch.device().xp
    shape = (B, H_kv, capacity, D)
    planes = xp.zeros((2, B, H_kv, -(-capacity // TILE), 8, words(D), 8), np.uint64)
    t = xp.ascontiguousarray(xp.broadcast_to(xp.asarray(thresholds, np.float32), (H_kv, 3)))
    return DeviceCache(
        xp.empty(shape, dtype), xp.empty(shape, dtype), planes, t, xp.zeros((B,), np.int32)
    )


class DecodeStep:
    """Append the keys and values of L new tokens and attend to `budget` tokens a query.

    A call allocates nothing and waits for nothing, so that it can be captured in a CUDA graph. The
    grids are made for the capacity and the kernels read the lengths on the device: one graph serves
    a cache that grows. A graph holds the addresses of what it was captured with, so the new tokens
    go into the same q, k and v each time. Layers that run one after the other may share a step.

    Parameters
    ----------
    H, L : int
        Query heads and new tokens a call.
    cache : DeviceCache
        One of those that the step is for; all have its shapes and dtype.
    budget, metric, query_bits, sinks, recent
        As of `select_topk`; the budget may be above the tokens that are there.
    """

    def __init__(
        self,
        H: int,
        L: int,
        cache: DeviceCache,
        budget: int,
        metric: str = "weighted",
        query_bits: int = 4,
        sinks: int = 0,
        recent: int = 0,
    ) -> None:
        xp = _launch.device().xp
        B, H_kv, capacity, D = cache.k.shape
        P = words(D)
        self._metric, self._query_bits = metric, query_bits
        self._sinks, self._recent = sinks, recent
        width = P * (2 if metric == "manhattan" else query_bits)
        self._query = xp.empty((B, H, L, width), np.uint64)
        self._cut = plan(metric, width, P, B, H_kv, H // H_kv * L, capacity, budget)
        self._indices = xp.empty((B, H, L, budget), np.int32)
        self._splits = no_splits(B * H * L, budget, D)
        self.out = xp.empty((B, H, L, D), cache.k.dtype)
        self.lse = xp.empty((B, H, L), np.float32)

    def __call__(
        self, q: Array, k: Array, v: Array, cache: DeviceCache, scale: float | None = None
    ) -> Array:
        """The attention of q (B, H, L, D) after k and v (B, H_kv, L, D) have been appended.

        All are of the cache's dtype. The result is `out`, which the next call overwrites, with its
        log-sum-exp in `lse`. Tokens that the cache has no room for are lost.
        """
        _, H_kv, S, D = k.shape
        capacity = cache.k.shape[2]
        elements = k.size
        _launch.device().launch(
            APPEND,
            (element(k),),
            (-(-elements // THREADS),),
            THREADS,
            (
                *(k, *leading_strides(k), v, *leading_strides(v)),
                *(cache.k, *leading_strides(cache.k), cache.v, *leading_strides(cache.v)),
                *(cache.lengths, H_kv, S, D, elements, capacity),
            ),
        )
        encode_step(
            *(q, k, cache.thresholds, cache.planes, cache.lengths),
            *(self._metric, self._query_bits, self._query),
        )
        lengths = cache.lengths
        lengths += S  # in place
        select_coded(
            *(self._query, cache.planes, cache.lengths, capacity, self._cut, self._indices),
            *(self._sinks, self._recent),
        )
        attend_into(
            *(q, cache.k, cache.v, self._indices, None, scale, self.out, self.lse, self._splits)
        )
        return self.out
