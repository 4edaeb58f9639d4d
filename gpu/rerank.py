"""Ranking selected tokens once more, by the exact inner product."""

from __future__ import annotations

import numpy as np

from . import _launch
from ._kernels import RERANK
from ._launch import Array
from ._rows import element, leading_strides, loaded_at_once

THREADS = 512
HELD = 6144  # products that a block keeps in shared memory: 24 KB, beside up to 8 KB of the query
STEP = 64  # coordinates that a key is taken in: what the query is padded to


def rerank(
    q: Array, k: Array, indices: Array, budget: int, sinks: int = 0, recent: int = 0
) -> Array:
    """Of each query's tokens `indices` (B, H, L, M) the `budget` of the largest q.k, ascending.

    An index of S or above is left out without a word: the check would wait for the device.
    """
    xp = _launch.device().xp
    B, H, L, D = q.shape
    H_kv, S = k.shape[1:3]
    M, rows = indices.shape[-1], B * H * L
    best = xp.empty((B, H, L, budget), np.int32)
    if best.size:
        wide = q if q.dtype == k.dtype else xp.asarray(q, np.float32)
        held = M if M <= HELD else 0
        width = -(-D // STEP) * STEP
        _launch.device().launch(
            RERANK,
            (element(wide), element(k), loaded_at_once(k)),
            (rows,),
            THREADS,
            (
                *(wide, *leading_strides(wide), k, *leading_strides(k)),
                *(xp.ascontiguousarray(indices), H, H_kv, L, S, M, D, width),
                *(xp.empty((rows, M - held), np.uint32), held, budget, sinks, recent, best),
            ),
            shared=4 * (width + held),
        )
    return best
