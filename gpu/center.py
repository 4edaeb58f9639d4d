"""Codes of keys relative to the mean of their tile."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from adamas_core.reference.quantize import TILE

from . import _launch
from ._kernels import ENCODE_FULL, ENCODE_LAST
from ._launch import Array
from ._rows import LANES, THREADS, element, leading_strides, limits, padded, per_lane, scale

if TYPE_CHECKING:
    from adamas_core.reference.center import Centers


def encode_centered(
    k: Array,
    thresholds: Array,
    planes: Array,
    centers: Centers,
    start: int | Array = 0,
    count: int | Array | None = None,
) -> Array:
    """Make keys k (B, H_kv, S, D) the tokens start, start + 1, ... of planes and centers, in place.

    Of a sequence the first `count` keys are taken, all if it is not given; start and count are
    ints or arrays (B,) on the host. Returns planes.
    """
    device = _launch.device()
    B, H_kv, S, D = k.shape
    first = np.broadcast_to(np.asarray(start, np.int64), (B,))
    taken = np.broadcast_to(np.asarray(S if count is None else count, np.int64), (B,))
    if H_kv == 0 or taken.max(initial=0) == 0:
        return planes
    one = (first == first[0]).all() and (taken == taken[0]).all()
    spans = None if one else device.xp.asarray(np.stack([first, taken]))
    Dt = padded(D)
    means, scales, tail = centers
    arguments = (
        *(k, *leading_strides(k), spans, int(first[0]), int(taken[0])),
        *(planes, *leading_strides(planes)[:3], means, *leading_strides(means)[:2]),
        *(scales, *leading_strides(scales)[:2], tail, *leading_strides(tail)[:2]),
        *(*limits(thresholds), D, Dt, scale(D)),
    )
    variant = element(k), per_lane(D)
    full = int(((first + taken) // TILE - first // TILE).max())
    if full:
        shared = 4 * Dt * (THREADS // LANES + 1)
        device.launch(ENCODE_FULL, variant, (full, H_kv, B), THREADS, arguments, shared)
    device.launch(ENCODE_LAST, variant, (H_kv, B), THREADS, arguments)
    return planes
