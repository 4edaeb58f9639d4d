"""One choice for the query heads of a KV head."""

from __future__ import annotations

import numpy as np

from . import _launch
from ._arrays import sequence_lengths
from ._kernels import POOL, WEIGH
from ._launch import Array

THREADS = 256
BLOCK_TOKENS = 4096  # per block; at most 2^15


def pool(levels: Array, highest: Array, length: int | Array, G: int) -> Array:
    """Ranks (B, H_kv, L, S), uint32, of the attention that groups of G heads give to tokens.

    levels (B, H, L, S) and highest (B, H, L) are those of `estimate.levels`. The more attention,
    the smaller the rank; 2^32 - 1 where a token is invisible.
    """
    device = _launch.device()
    xp = device.xp
    B, H, L, S = levels.shape
    H_kv = H // G
    ranks = xp.empty((B, H_kv, L, S), np.uint32)
    if ranks.size:
        chunks = -(-S // BLOCK_TOKENS)
        rows = {
            "levels": levels,
            **sequence_lengths(length),
            "L": L,
            "S": S,
            "size": BLOCK_TOKENS,
            "highest": highest,
            "totals": xp.zeros((B, H, L), np.uint64),
        }
        device.launch(WEIGH, (), (B * H * L, chunks), THREADS, {**rows, "H": H})
        device.launch(
            POOL,
            (),
            (B * H_kv * L, chunks),
            THREADS,
            {**rows, "H_kv": H_kv, "G": G, "ranks": ranks},
            shared=8 * G,
        )
    return ranks
