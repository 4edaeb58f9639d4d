"""Distances between queries and coded keys."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from adamas_core.reference.layout import TILE

from . import _launch
from ._arrays import key_planes, sequence_lengths
from ._kernels import MANHATTAN_PLANES, PLANES, SCORE
from ._launch import Array

THREADS = 256
BLOCK_TILES = 32  # tiles per block of `score`, four per warp


class QueryGroups(NamedTuple):
    """How score.cuh takes the queries of a KV head."""

    variant: tuple[int, int, int]  # PLANES, P, QUERIES
    groups: int  # of QUERIES queries each
    parts: int  # planes per query


def query_groups(metric: str, parts: int, P: int, rows: int) -> QueryGroups:
    """For `rows` queries per KV head, of `parts` planes of P words each."""
    # A weighted query of 2 bits has two planes too. It gets a third plane, of zeros.
    weighted = min(n for n in PLANES if n >= max(parts, 3))
    planes = MANHATTAN_PLANES if metric == "manhattan" else weighted
    queries = 8 if rows > 1 and P <= 4 else 1
    return QueryGroups((planes, P, queries), -(-rows // queries), parts)


def score(query: Array, planes: Array, length: int | Array, metric: str = "weighted") -> Array:
    """Distances (B, H, L, S) between query (B, H, L, R) and planes (2, B, H_kv, T, 8, P, 8)."""
    device = _launch.device()
    B, H, L, width = query.shape
    H_kv, P = planes.shape[2], planes.shape[5]
    lengths = sequence_lengths(length)
    G, S = H // H_kv, lengths["length"]
    distances = device.xp.empty((B, H, L, S), np.uint16)
    if distances.size:
        groups = query_groups(metric, width // P, P, G * L)
        device.launch(
            SCORE,
            groups.variant,
            (-(-S // (TILE * BLOCK_TILES)), groups.groups, B * H_kv),
            THREADS,
            {
                "query": device.xp.ascontiguousarray(query),
                "parts": groups.parts,
                **key_planes(planes),
                **lengths,
                "H_kv": H_kv,
                "G": G,
                "L": L,
                "S": S,
                "distances": distances,
            },
        )
    return distances
