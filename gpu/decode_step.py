"""A decode step that a CUDA graph can hold: lengths on the device, and memory of its own."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from adamas_core.reference.center import CENTERED_THRESHOLDS
from adamas_core.reference.layout import (
    TILE,
    Centers,
    Codes,
    Fine,
    Selection,
    Softmax,
    Values,
    padded,
    tiles,
    words,
)

from . import _launch
from ._arrays import (
    element,
    head_centers,
    head_thresholds,
    head_values,
    key_planes,
    strides,
    third_bits,
)
from ._kernels import BEGIN_STEP
from ._launch import Argument, Array
from ._softmax import plain_scale
from ._warps import LANES, THREADS, hadamard_scale, per_lane
from .attend import attend_into, empty_splits
from .center import encode_centered
from .quantize import CodedQuery, empty_coded_query, encode, query_bits
from .select import make_plan, select_coded
from .tail import attend_tiers, choose_tiers, make_room
from .values import CUT, encode_values

MOST_WITH_TAIL = 1024  # the head_dim up to which begin_step.cu codes what a tail needs


class DeviceCache(NamedTuple):
    """Keys, values and codes of one layer, with room for `capacity` tokens."""

    k: Array  # (B, H_kv, capacity, D)
    v: Array  # (B, H_kv, capacity, D)
    planes: Array  # (2, B, H_kv, T, 8, P, 8), uint64
    thresholds: Array  # (H_kv, 3), float32
    lengths: Array  # (B,), int32
    centers: Centers | None = None  # None: the codes are plain
    fine: Fine | None = None  # this and all below: None where there is no room for a tail
    values: Values | None = None
    sums: Array | None = None  # (3, B, H_kv, D), float32: of full tiles, of the open tile, of both

    @property
    def codes(self) -> Codes:
        """The codes, with their lengths on the device."""
        return Codes(self.planes, self.lengths, self.thresholds, self.centers, self.fine)


def device_cache(
    B: int,
    H_kv: int,
    D: int,
    dtype: Any,
    capacity: int,
    thresholds: Array | None = None,
    tail: bool = False,
) -> DeviceCache:
    """A cache without tokens.

    Its codes are centered, as those of `encode`. If thresholds (3,) or (H_kv, 3) are given, the
    codes are plain. With `tail` it keeps what selections with a tail need: third bits of the keys,
    codes of the values, and their sums. A ValueError says that plain codes have no tail, and that
    D is above 1024.
    """
    if tail and thresholds is not None:
        raise ValueError(
            "device_cache: tail=True with thresholds; expected no thresholds, because plain codes "
            "have no tail"
        )
    if tail and D > MOST_WITH_TAIL:
        raise ValueError(
            f"device_cache: D={D} with tail=True; expected at most {MOST_WITH_TAIL}, because the "
            "kernel that appends has no registers for more"
        )
    xp = _launch.device().xp
    shape = (B, H_kv, capacity, D)
    T, P = tiles(capacity), words(D)
    centers = fine = values = sums = None
    if thresholds is None:
        thresholds = CENTERED_THRESHOLDS
        centers = _empty_centers(B, H_kv, D, T)
    if tail:
        fine = Fine(
            xp.zeros((B, H_kv, T, TILE, P), np.uint64), xp.zeros((B, H_kv, T, TILE), np.uint8)
        )
        sums = xp.zeros((3, B, H_kv, D), np.float32)
        values = Values(
            xp.zeros((B, H_kv, T, TILE, 2, P), np.uint64),
            xp.zeros((B, H_kv, T, TILE), np.uint8),
            xp.zeros((B, H_kv, 2, D), np.float32),
            sums[2],
        )
    planes = xp.zeros((2, B, H_kv, T, 8, P, 8), np.uint64)
    t = xp.ascontiguousarray(xp.broadcast_to(xp.asarray(thresholds, np.float32), (H_kv, 3)))
    return DeviceCache(
        *(xp.empty(shape, dtype), xp.empty(shape, dtype), planes, t),
        xp.zeros((B,), np.int32),
        *(centers, fine, values, sums),
    )


def _empty_centers(B: int, H_kv: int, D: int, T: int) -> Centers:
    """Centers of T tiles without tokens."""
    xp, Dt = _launch.device().xp, padded(D)
    return Centers(
        xp.zeros((B, H_kv, T, Dt), np.float16),
        xp.zeros((B, H_kv, T, TILE), np.uint8),
        xp.zeros((B, H_kv, TILE, Dt), np.float32),
    )


def fill(cache: DeviceCache, k: Array, v: Array, count: int | Array | None = None) -> None:
    """Make k and v (B, H_kv, S, D), as of a prompt, the tokens of a cache, and code them.

    Each sequence takes its first `count` rows, or all if count is not given; count is an int or
    (B,), on the host. Tokens that the cache has already are replaced.
    """
    B, _, S, _ = k.shape
    each = np.array(np.broadcast_to(S if count is None else count, (B,)))
    cache.k[:, :, :S] = k
    cache.v[:, :, :S] = v
    if cache.centers is None:
        encode(k, cache.thresholds, cache.planes, 0)
    else:
        encode_centered(k, cache.thresholds, cache.planes, cache.centers, 0, each, cache.fine)
    if cache.values is not None:
        codes, scales, bases, _ = cache.values
        for b, n in enumerate(map(int, each)):
            _sum(v[b, :, :n], cache.sums[:, b], bases[b])  # type: ignore[index]
        encode_values(v, codes, scales, bases, 0, each)
    cache.lengths[...] = _launch.device().xp.asarray(each, np.int32)


def _sum(v: Array, sums: Array, bases: Array) -> None:
    """Write sums (3, H_kv, D) and bases (H_kv, 2, D) of values (H_kv, n, D).

    The order of additions is that of `total_of` and `bases_of` in reference.values.
    """
    xp = _launch.device().xp
    n = v.shape[1]
    whole = n // TILE
    end = whole * TILE
    sums[...] = 0
    bases[...] = 0
    full = xp.zeros((v.shape[0], whole, v.shape[2]), np.float32)
    for slot in range(TILE):  # in each tile token by token, in all tiles at once
        full += v[:, slot:end:TILE].astype(np.float32)
    for t in range(whole):
        sums[0] += full[:, t]
    for i in range(end, n):
        sums[1] += v[:, i].astype(np.float32)
    sums[2] = sums[0] + sums[1]
    if n:
        bases[:, 0] = v[:, 0].astype(np.float32)
    if whole:
        bases[:, 1] = full[:, 0] * np.float32(1 / TILE)
    bases[...] = xp.where(xp.isfinite(bases), bases, xp.zeros_like(bases))


class DecodeStep:
    """Append the keys and values of L new tokens, and attend to `budget` tokens per query.

    With selection.tail it attends to all tokens, as `attend_tail` does.

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
        selection.refine or selection.group is set, selection.tail is set and the cache has no room
        for a tail, or the codes are centered and selection.metric is "manhattan".
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
        selection = selection.settled(cache.values is not None)
        if selection.tail and cache.values is None:
            raise ValueError(
                f"DecodeStep: selection has tail={selection.tail} and the cache has no codes of "
                "values; expected tail=0, or a cache of device_cache(..., tail=True)"
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
        self._room = None
        if selection.tail:
            self._room = make_room(selection, cache.codes, (B, H, L, D), capacity, budget)
        else:
            self._plan = make_plan(selection, cache.codes, H // H_kv * L, capacity, budget)
            self._indices = xp.empty((B, H, L, budget), np.int32)
            self._splits = empty_splits(B * H * L, budget, D)
        self.out = xp.empty((B, H, L, D), cache.k.dtype)
        self.lse = xp.empty((B, H, L), np.float32)

    def __call__(
        self, q: Array, k: Array, v: Array, cache: DeviceCache, softmax: Softmax | None = None
    ) -> Array:
        """The attention of q (B, H, L, D) after k and v (B, H_kv, L, D) have been appended.

        q, k and v have the dtype of the cache. The result is `out`, and its log-sum-exp is `lse`.
        The next call overwrites both. Tokens for which the cache has no room are lost.
        """
        new = {**strides("q", q), **strides("k_new", k), **strides("v_new", v)}
        _begin(new, cache, self._query, query_bits(self._selection), self._finished)
        counts = {"lengths": cache.lengths, "length": cache.k.shape[2]}
        rows, selection = (q, cache.k, cache.v), self._selection
        if self._room is not None and cache.values is not None:
            scale = plain_scale(softmax, cache.k, cache.v)
            choose_tiers(self._query, cache.codes, counts, self._room, selection, scale)
            attend_tiers(*rows, cache.values, counts, self._room, scale, self.out, self.lse)
        else:
            select_coded(self._query, cache.codes, counts, self._plan, self._indices, selection)
            attend_into(*rows, self._indices, softmax, self.out, self.lse, self._splits)
        return self.out


def _begin(
    new: dict[str, Argument], cache: DeviceCache, query: CodedQuery, bits: int, finished: Array
) -> None:
    """Append and code the new keys and values, code the queries, and count the new tokens."""
    B, H, L, _ = query.planes.shape
    _, H_kv, capacity, D = cache.k.shape
    warps = THREADS // LANES
    centers: dict[str, Argument] = {}
    values: dict[str, Argument] = {}
    shared = 0
    if cache.centers is not None:
        centers = head_centers(cache.centers, "open_tile") | third_bits(cache.fine)
        shared = 4 * padded(D) * (warps + 1)
    if cache.values is not None:
        values = head_values(*cache.values[:3], ("v_codes", "v_scales", "bases"))
        values |= {"sums": cache.sums, "cut": CUT}
    _launch.device().launch(
        BEGIN_STEP,
        (element(cache.k), per_lane(D)),
        ((2 if values else 1) * H_kv + -(-H * L // warps), B),
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
            **key_planes(cache.planes),
            **centers,
            **values,
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
