"""A decode step that a CUDA graph can hold: lengths on the device, and memory of its own."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from adamas_core.reference.layout import Selection, tiles, words

from . import _launch
from ._arrays import element, strides
from ._kernels import APPEND
from ._launch import Array
from .attend import attend_into, empty_splits
from .quantize import empty_query, encode_step
from .select import make_plan, select_coded

THREADS = 256


class DeviceCache(NamedTuple):
    """Keys, values and plain codes of one layer, with room for `capacity` tokens."""

    k: Array  # (B, H_kv, capacity, D)
    v: Array  # (B, H_kv, capacity, D)
    planes: Array  # (2, B, H_kv, T, 8, P, 8), uint64
    thresholds: Array  # (H_kv, 3), float32
    lengths: Array  # (B,), int32


def device_cache(
    B: int, H_kv: int, D: int, dtype: Any, capacity: int, thresholds: Array
) -> DeviceCache:
    """A cache without tokens."""
    xp = _launch.device().xp
    shape = (B, H_kv, capacity, D)
    planes = xp.zeros((2, B, H_kv, tiles(capacity), 8, words(D), 8), np.uint64)
    t = xp.ascontiguousarray(xp.broadcast_to(xp.asarray(thresholds, np.float32), (H_kv, 3)))
    return DeviceCache(
        xp.empty(shape, dtype), xp.empty(shape, dtype), planes, t, xp.zeros((B,), np.int32)
    )


class DecodeStep:
    """Append the keys and values of L new tokens, and attend to `budget` tokens per query.

    A call allocates nothing and does not wait for the device, so a CUDA graph can capture it. The
    grids are made for the capacity, and the kernels read the lengths on the device, so one graph
    serves a cache that grows. A graph holds the addresses of the arrays that it was captured with:
    write the new tokens into the same q, k and v each time. Layers that run one after another may
    share a step.

    Parameters
    ----------
    H, L : int
        Query heads, and new tokens per call.
    cache : DeviceCache
        One of the caches that the step is for. All of them have its shapes and dtype.
    budget : int
        Tokens per query. It may be larger than the number of tokens in the cache.
    selection : Selection
        How tokens are selected, as for `select_topk`.

    Raises
    ------
    ValueError
        selection.refine or selection.group is set.
    """

    def __init__(
        self, H: int, L: int, cache: DeviceCache, budget: int, selection: Selection
    ) -> None:
        if selection.refine or selection.group:
            raise ValueError(
                f"DecodeStep: selection has refine={selection.refine} and group={selection.group}; "
                "expected refine=0 and group=False, because a step selects by plain codes alone"
            )
        xp = _launch.device().xp
        B, H_kv, capacity, D = cache.k.shape
        rows = H // H_kv * L
        self._selection = selection
        self._query = empty_query((B, H, L, D), selection)
        self._plan = make_plan(selection, words(D), B, H_kv, rows, capacity, budget)
        self._indices = xp.empty((B, H, L, budget), np.int32)
        self._splits = empty_splits(B * H * L, budget, D)
        self.out = xp.empty((B, H, L, D), cache.k.dtype)
        self.lse = xp.empty((B, H, L), np.float32)

    def __call__(
        self, q: Array, k: Array, v: Array, cache: DeviceCache, scale: float | None = None
    ) -> Array:
        """The attention of q (B, H, L, D) after k and v (B, H_kv, L, D) have been appended.

        q, k and v have the dtype of the cache. The result is `out`, and its log-sum-exp is `lse`.
        The next call overwrites both. Tokens for which the cache has no room are lost.
        """
        _append(k, v, cache)
        encode_step(
            *(q, k, cache.thresholds, cache.planes, cache.lengths, self._selection, self._query)
        )
        lengths = cache.lengths
        lengths += k.shape[2]  # in place
        counts = {"lengths": lengths, "length": cache.k.shape[2]}
        select_coded(self._query, cache.planes, counts, self._plan, self._indices, self._selection)
        attend_into(*(q, cache.k, cache.v, self._indices, scale, self.out, self.lse, self._splits))
        return self.out


def _append(k: Array, v: Array, cache: DeviceCache) -> None:
    """Write keys and values k, v (B, H_kv, L, D) after the tokens of each sequence."""
    _, H_kv, L, D = k.shape
    _launch.device().launch(
        APPEND,
        (element(k),),
        (-(-k.size // THREADS),),
        THREADS,
        {
            **strides("k_new", k),
            **strides("v_new", v),
            **strides("k", cache.k),
            **strides("v", cache.v),
            "lengths": cache.lengths,
            "H_kv": H_kv,
            "S": L,
            "D": D,
            "elements": k.size,
            "capacity": cache.k.shape[2],
        },
    )
