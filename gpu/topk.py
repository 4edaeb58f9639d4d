"""Exact selection of the nearest tokens."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from adamas_core.reference.layout import Selection

from . import _launch
from ._kernels import DISTANCES, MERGE_CANDIDATES, TOPK_CHUNKS
from ._launch import Argument, Array

THREADS = 256
CHUNK = 8192  # tokens per block, whose distances it keeps in shared memory: 16 KB, or 32 of uint32
MERGE_THREADS = 512
MERGE_SHARED = 88 * 1024  # bytes of candidates that merge_candidates keeps in shared memory


class Candidates(NamedTuple):
    """The selections of each row's chunks, from which merge_candidates selects."""

    distances: Array  # (rows, chunks, slots), uint16 or uint32
    tokens: Array  # (rows, chunks, slots), int32
    slots: int

    def arguments(self) -> dict[str, Argument]:
        """The arguments of a kernel that writes candidates."""
        return {
            "candidate_distances": self.distances,
            "candidate_tokens": self.tokens,
            "slots": self.slots,
        }


def empty_candidates(
    rows: int, chunks: int, K: int, size: int, dtype: Any = np.uint16, one: bool = False
) -> Candidates:
    """Room for the selections of `chunks` chunks of at most `size` tokens.

    One chunk needs none, unless `one` is true.
    """
    xp = _launch.device().xp
    slots = min(K, size) if chunks > 1 or one else 0
    shape = (rows, chunks, slots)
    return Candidates(xp.empty(shape, dtype), xp.empty(shape, np.int32), slots)


def taken(K: int, selection: Selection) -> dict[str, Argument]:
    """The budget and the numbers of tokens that are always taken."""
    return {"K": K, "sinks": selection.sinks, "recent": selection.recent}


def merge_candidates(candidates: Candidates, indices: Array, K: int, selection: Selection) -> None:
    """Select each row's tokens from its candidates, into indices (rows, K)."""
    distances = candidates.distances
    rows, chunks, slots = distances.shape
    n = chunks * slots
    in_shared = n if n * distances.itemsize <= MERGE_SHARED else 0
    _launch.device().launch(
        MERGE_CANDIDATES,
        (DISTANCES[distances.dtype.name],),
        (rows,),
        MERGE_THREADS,
        {
            "candidate_distances": distances,
            "candidate_tokens": candidates.tokens,
            "n": n,
            "in_shared": in_shared,
            **taken(K, selection),
            "indices": indices,
        },
        shared=distances.itemsize * in_shared,
    )


def topk(distances: Array, budget: int, selection: Selection) -> Array:
    """Indices (..., budget) of the tokens with the smallest distances (..., S), ascending."""
    device = _launch.device()
    *lead, S = distances.shape
    rows = math.prod(lead)
    indices = device.xp.empty((*lead, budget), np.int32)
    if indices.size:
        chunks = max(-(-S // CHUNK), 1)
        candidates = empty_candidates(rows, chunks, budget, CHUNK, distances.dtype)
        device.launch(
            TOPK_CHUNKS,
            (DISTANCES[distances.dtype.name],),
            (rows, chunks),
            THREADS,
            {
                "distances": device.xp.ascontiguousarray(distances),
                "S": S,
                "size": CHUNK,
                **taken(budget, selection),
                **candidates.arguments(),
                "indices": indices,
            },
            shared=distances.itemsize * min(S, CHUNK),
        )
        if chunks > 1:
            merge_candidates(candidates, indices, budget, selection)
    return indices
