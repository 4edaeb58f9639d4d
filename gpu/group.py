"""One choice for the query heads of a KV head."""

from __future__ import annotations

import numpy as np

from . import _launch
from ._kernels import POOL, WEIGH
from ._launch import Array
from .score import device_lengths

WEIGH_THREADS = 512
POOL_THREADS = 256
SIZE = 4096  # tokens a block of `pool`


def pool(levels: Array, length: int | Array, G: int) -> Array:
    """Ranks (B, H_kv, L, S), uint32, of the attention that groups of G heads give to tokens.

    levels (B, H, L, S) are what `estimate.levels` returns. The more attention, the smaller the
    number; 2^32 - 1 where a token is invisible.
    """
    device = _launch.device()
    xp = device.xp
    B, H, L, S = levels.shape
    ranks = xp.empty((B, H // G, L, S), np.uint32)
    if ranks.size:
        highest, inverse = xp.empty((B, H, L), np.int32), xp.empty((B, H, L), np.float32)
        seen = device_lengths(length)
        arguments = (levels, *seen, H, L, S, highest, inverse)
        device.launch(WEIGH, (), (B * H * L,), WEIGH_THREADS, arguments)
        device.launch(
            POOL,
            (),
            (B * (H // G) * L, -(-S // SIZE)),
            POOL_THREADS,
            (levels, *seen, highest, inverse, H // G, G, L, S, SIZE, ranks),
        )
    return ranks
