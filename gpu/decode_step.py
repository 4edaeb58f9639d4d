"""A decode step that a CUDA graph can hold: lengths on the device, and memory of its own."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from adamas_core.reference.center import CENTERED_THRESHOLDS
from adamas_core.reference.layout import TILE, Centers, Codes, Selection, padded, tiles, words

from . import _launch
from ._arrays import coded_planes, element, head_centers, head_thresholds, strides
from ._kernels import BEGIN_STEP
from ._launch import Argument, Array
from ._warps import LANES, THREADS, hadamard_scale, per_lane
from .attend import attend_into, empty_splits
from .quantize import CodedQuery, empty_coded_query, query_bits
from .select import make_plan, select_coded


class DeviceCache(NamedTuple):
    """Keys, values and codes of one layer, with room for `capacity` tokens."""

    k: Array  # (B, H_kv, capacity, D)
    v: Array  # (B, H_kv, capacity, D)
    planes: Array  # (2, B, H_kv, T, 8, P, 8), uint64
    thresholds: Array  # (H_kv, 3), float32
    lengths: Array  # (B,), int32
    centers: Centers | None = None  # None: the codes are plain

    @property
    def codes(self) -> Codes:
        """The codes, with their lengths on the device."""
        return Codes(self.planes, self.lengths, self.thresholds, self.centers)


def device_cache(
    B: int, H_kv: int, D: int, dtype: Any, capacity: int, thresholds: Array | None = None
) -> DeviceCache:
    """A cache without tokens.

    Its codes are centered, as those of `encode`. If thresholds (3,) or (H_kv, 3) are given, the
    codes are plain.
    """
    xp = _launch.device().xp
    shape = (B, H_kv, capacity, D)
    T, Dt = tiles(capacity), padded(D)
    centers = None
    if thresholds is None:
        thresholds = CENTERED_THRESHOLDS
        centers = Centers(
            xp.zeros((B, H_kv, T, Dt), np.float16),
            xp.zeros((B, H_kv, T, TILE), np.uint8),
            xp.zeros((B, H_kv, TILE, Dt), np.float32),
        )
    planes = xp.zeros((2, B, H_kv, T, 8, words(D), 8), np.uint64)
    t = xp.ascontiguousarray(xp.broadcast_to(xp.asarray(thresholds, np.float32), (H_kv, 3)))
    return DeviceCache(
        *(xp.empty(shape, dtype), xp.empty(shape, dtype), planes, t),
        xp.zeros((B,), np.int32),
        centers,
    )


class DecodeStep:
    """Append the keys and values of L new tokens, and attend to `budget` tokens per query.

    A call allocates nothing and does not wait for the device, so a CUDA graph can capture it. It
    takes four launches. The grids are made for the capacity, and the kernels read the lengths on
    the device, so one graph serves a cache that grows. A graph holds the addresses of the arrays
    that it was captured with: write the new tokens into the same q, k and v each time. Layers that
    run one after another may share a step.

    Parameters
    ----------
    H, L : int
        Query heads, and new tokens per call.
    cache : DeviceCache
        One of the caches that the step is for. All of them have its shapes, dtype and kind of
        codes.
    budget : int
        Tokens per query. It may be larger than the number of tokens in the cache.
    selection : Selection
        How tokens are selected, as for `select_topk`.

    Raises
    ------
    ValueError
        selection.refine, selection.group or selection.tail is set, or the codes are centered and
        selection.metric is "manhattan".
    """

    def __init__(
        self, H: int, L: int, cache: DeviceCache, budget: int, selection: Selection
    ) -> None:
        if selection.refine or selection.group:
            raise ValueError(
                f"DecodeStep: selection has refine={selection.refine} and group={selection.group}; "
                "expected refine=0 and group=False, because a step selects by codes alone and for "
                "each query head"
            )
        if selection.tail:
            raise ValueError(
                f"DecodeStep: selection has tail={selection.tail}; expected tail=0, because a step "
                "attends to selected tokens alone"
            )
        if cache.centers is not None and selection.metric != "weighted":
            raise ValueError(
                f"DecodeStep: selection has metric={selection.metric!r} and the cache has centered "
                "codes; expected metric='weighted', or a cache with thresholds, whose codes are "
                "plain"
            )
        xp = _launch.device().xp
        B, H_kv, capacity, D = cache.k.shape
        self._selection = selection
        self._query = empty_coded_query((B, H, L, D), selection, cache.codes)
        self._finished = xp.zeros((B,), np.uint32)
        self._plan = make_plan(selection, cache.codes, H // H_kv * L, capacity, budget)
        self._indices = xp.empty((B, H, L, budget), np.int32)
        self._splits = empty_splits(B * H * L, budget, D)
        self.out = xp.empty((B, H, L, D), cache.k.dtype)
        self.lse = xp.empty((B, H, L), np.float32)

    def __call__(
        self, q: Array, k: Array, v: Array, cache: DeviceCache, scale: float | None = None
    ) -> Array:
        """The attention of q (B, H, L, D) after k and v (B, H_kv, L, D) have been appended.

        q, k and v have the dtype of the cache. The result is `out`, and its log-sum-exp is `lse`.
        The next call overwrites both. Tokens for which the cache has no room are lost. A ValueError
        says that scale is not finite.
        """
        if scale is not None and not abs(float(scale)) <= float(
            np.finfo(np.float32).max
        ):  # NaN too
            raise ValueError(f"DecodeStep: scale={scale!r}; expected a finite number, in float32")
        new = {**strides("q", q), **strides("k_new", k), **strides("v_new", v)}
        _begin(new, cache, self._query, query_bits(self._selection), self._finished)
        counts = {"lengths": cache.lengths, "length": cache.k.shape[2]}
        select_coded(self._query, cache.codes, counts, self._plan, self._indices, self._selection)
        attend_into(*(q, cache.k, cache.v, self._indices, scale, self.out, self.lse, self._splits))
        return self.out


def _begin(
    new: dict[str, Argument], cache: DeviceCache, query: CodedQuery, bits: int, finished: Array
) -> None:
    """Append and code the new keys and values, code the queries, and count the new tokens."""
    B, H, L, _ = query.planes.shape
    _, H_kv, capacity, D = cache.k.shape
    warps = THREADS // LANES
    centers: dict[str, Argument] = {}
    shared = 0
    if cache.centers is not None:
        centers = head_centers(cache.centers, "open_tile")
        shared = 4 * padded(D) * (warps + 1)
    _launch.device().launch(
        BEGIN_STEP,
        (element(cache.k), per_lane(D)),
        (H_kv + -(-H * L // warps), B),
        THREADS,
        {
            **new,
            "H": H,
            "L": L,
            "query_bits": bits,
            "query": query.planes,
            "x": query.x,
            **strides("k", cache.k),
            **strides("v", cache.v),
            **coded_planes(cache.planes),
            **centers,
            **head_thresholds(cache.thresholds),
            "lengths": cache.lengths,
            "finished": finished,
            "H_kv": H_kv,
            "capacity": capacity,
            "D": D,
            "Dt": padded(D),
            "hadamard_scale": hadamard_scale(D),
        },
        shared,
    )
