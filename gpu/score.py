"""Distances between queries and coded keys."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from adamas_core.reference.quantize import TILE

from . import _launch
from ._kernels import PLANES, SCORE
from ._launch import Argument, Array
from ._rows import leading_strides

THREADS = 256
TILES = 32  # a block of `score`, 4 for each of its warps


class Scan(NamedTuple):
    """How score.cuh takes the queries of a KV head."""

    variant: tuple[int, int, int]  # PLANES, P, QUERIES
    groups: int  # of QUERIES queries
    parts: int  # planes of a query


def scan(metric: str, width: int, P: int, rows: int) -> Scan:
    """For `rows` queries a KV head, of `width` words each."""
    parts = width // P
    # A weighted query of 2 bits has two planes as well, and takes a third of zeros.
    planes = 2 if metric == "manhattan" else min(n for n in PLANES if n >= max(parts, 3))
    queries = 8 if rows > 1 and P <= 4 else 1
    return Scan((planes, P, queries), -(-rows // queries), parts)


def codes_arguments(planes: Array, lengths: Array | None, length: int) -> tuple[Argument, ...]:
    """The planes with their strides, and the lengths: an array (B,), or one number."""
    return (planes, *leading_strides(planes)[:3], lengths, length)


def device_lengths(length: int | Array) -> tuple[Array | None, int]:
    """Lengths (B,) as the kernels read them, None for one number, and the largest."""
    if isinstance(length, (int, np.integer)):
        return None, int(length)
    return _launch.device().xp.asarray(length, np.int32), longest(length)


def longest(length: int | Array) -> int:
    """The largest of lengths (B,), or the one number."""
    return int(np.max(length, initial=0))


def score(query: Array, planes: Array, length: int | Array, metric: str = "weighted") -> Array:
    """Distances (B, H, L, S) between query (B, H, L, R) and planes (2, B, H_kv, T, 8, P, 8)."""
    device = _launch.device()
    B, H, L, width = query.shape
    H_kv, P = planes.shape[2], planes.shape[5]
    G = H // H_kv
    lengths, S = device_lengths(length)
    distances = device.xp.empty((B, H, L, S), np.uint16)
    if distances.size:
        form = scan(metric, width, P, G * L)
        device.launch(
            SCORE,
            form.variant,
            (-(-S // (TILE * TILES)), form.groups, B * H_kv),
            THREADS,
            (
                device.xp.ascontiguousarray(query),
                form.parts,
                *codes_arguments(planes, lengths, S),
                *(H_kv, G, L, S),
                distances,
            ),
        )
    return distances
