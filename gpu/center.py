"""Codes of keys relative to the mean of their tile."""

from __future__ import annotations

from adamas_core.reference.layout import TILE, Centers, Fine, padded

from . import _launch
from ._arrays import (
    element,
    head_centers,
    head_thresholds,
    key_planes,
    spans,
    strides,
    third_bits,
)
from ._kernels import ENCODE_FULL, ENCODE_LAST
from ._launch import Array
from ._warps import LANES, THREADS, hadamard_scale, per_lane


def encode_centered(
    k: Array,
    thresholds: Array,
    planes: Array,
    centers: Centers,
    start: int | Array = 0,
    count: int | Array | None = None,
    fine: Fine | None = None,
) -> Array:
    """Code keys k (B, H_kv, S, D) as tokens start, start + 1, ... of planes and centers, in place.

    Each sequence takes its first `count` keys, or all if count is not given. start and count are
    ints or arrays (B,) on the host. With `fine`, third bits and their scales are written
    too. Returns planes.
    """
    device = _launch.device()
    B, H_kv, S, D = k.shape
    new, (first, taken) = spans(B, S, start, count)
    if H_kv == 0 or taken.max(initial=0) == 0:
        return planes
    arguments = {
        **strides("k", k),
        **new,
        **key_planes(planes),
        **head_centers(centers, "open_tile"),
        **third_bits(fine),
        **head_thresholds(thresholds),
        "D": D,
        "Dt": padded(D),
        "hadamard_scale": hadamard_scale(D),
    }
    variant = element(k), per_lane(D)
    full = int(((first + taken) // TILE - first // TILE).max())
    if full:
        shared = 4 * padded(D) * (THREADS // LANES + 1)
        device.launch(ENCODE_FULL, variant, (full, H_kv, B), THREADS, arguments, shared)
    device.launch(ENCODE_LAST, variant, (H_kv, B), THREADS, arguments)
    return planes
