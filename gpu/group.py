"""One choice for the query heads of a KV head."""

from __future__ import annotations

import numpy as np

from . import _launch
from ._arrays import sequence_lengths
from ._kernels import POOL, WEIGH
from ._launch import Array

WEIGH_THREADS = 512
POOL_THREADS = 256
BLOCK_TOKENS = 4096  # per block of `pool`


def pool(levels: Array, length: int | Array, G: int) -> Array:
    """Ranks (B, H_kv, L, S), uint32, of the attention that groups of G heads give to tokens.

    levels (B, H, L, S) are those of `estimate.levels`. The more attention, the smaller the rank;
    2^32 - 1 where a token is invisible.
    """
    device = _launch.device()
    xp = device.xp
    B, H, L, S = levels.shape
    H_kv = H // G
    ranks = xp.empty((B, H_kv, L, S), np.uint32)
    if ranks.size:
        rows = {
            "levels": levels,
            **sequence_lengths(length),
            "L": L,
            "S": S,
            "highest": xp.empty((B, H, L), np.int32),
            "inverse": xp.empty((B, H, L), np.float32),
        }
        device.launch(WEIGH, (), (B * H * L,), WEIGH_THREADS, {**rows, "H": H})
        device.launch(
            POOL,
            (),
            (B * H_kv * L, -(-S // BLOCK_TOKENS)),
            POOL_THREADS,
            {**rows, "H_kv": H_kv, "G": G, "size": BLOCK_TOKENS, "ranks": ranks},
        )
    return ranks
