"""Exact selection of the nearest tokens."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from . import _launch
from ._kernels import DISTANCES, MERGE_CANDIDATES, TOPK_CHUNKS
from ._launch import Array

THREADS = 256
CHUNK = 8192  # tokens whose distances a block keeps in shared memory: 16 KB, or 32 of uint32
MERGE_THREADS = 512
MERGE_HELD = 32768  # bytes of candidates that a block of merge_candidates keeps in shared memory


class Candidates(NamedTuple):
    """What the chunks of each row select, for merge_candidates to select from."""

    distances: Array  # (rows, chunks, slots), uint16 or uint32
    tokens: Array  # the same, int32
    slots: int


def no_candidates(rows: int, chunks: int, K: int, size: int, dtype: Any = np.uint16) -> Candidates:
    """Room for the selections of `chunks` chunks of at most `size` tokens; one needs none."""
    xp = _launch.device().xp
    slots = min(K, size) if chunks > 1 else 0
    shape = (rows, chunks, slots)
    return Candidates(xp.empty(shape, dtype), xp.empty(shape, np.int32), slots)


def merge_candidates(
    candidates: Candidates, indices: Array, K: int, sinks: int, recent: int
) -> None:
    """Select each row's tokens out of its candidates into indices (rows, K)."""
    rows, chunks, slots = candidates.distances.shape
    n, distances = chunks * slots, candidates.distances
    held = n if n * distances.itemsize <= MERGE_HELD else 0
    _launch.device().launch(
        MERGE_CANDIDATES,
        (DISTANCES[distances.dtype.name],),
        (rows,),
        MERGE_THREADS,
        (distances, candidates.tokens, n, held, K, sinks, recent, indices),
        shared=distances.itemsize * held,
    )


def topk(distances: Array, budget: int, sinks: int = 0, recent: int = 0) -> Array:
    """Indices (..., budget) of the tokens with the smallest distances (..., S), ascending."""
    device = _launch.device()
    *lead, S = distances.shape
    rows = math.prod(lead)
    indices = device.xp.empty((*lead, budget), np.int32)
    if indices.size:
        chunks = max(-(-S // CHUNK), 1)
        candidates = no_candidates(rows, chunks, budget, CHUNK, distances.dtype)
        device.launch(
            TOPK_CHUNKS,
            (DISTANCES[distances.dtype.name],),
            (rows, chunks),
            THREADS,
            (
                device.xp.ascontiguousarray(distances),
                *(S, CHUNK, budget, sinks, recent),
                *candidates,
                indices,
            ),
            shared=distances.itemsize * min(S, CHUNK),
        )
        if chunks > 1:
            merge_candidates(candidates, indices, budget, sinks, recent)
    return indices
