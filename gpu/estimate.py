"""Estimated inner products of queries and keys, as numbers to pool."""

from __future__ import annotations

import numpy as np

from adamas_core.reference.group import STEPS
from adamas_core.reference.layout import TILE, Codes, words

from . import _launch
from ._arrays import head_centers, head_thresholds
from ._kernels import ESTIMATE
from ._launch import Argument, Array
from ._warps import THREADS, per_lane

BLOCK_TOKENS = 32 * TILE  # per block, so eight tiles per warp


def levels(
    x: Array, query: Array, distances: Array, codes: Codes, scale: float
) -> tuple[Array, Array]:
    """Logits scale q.k (B, H, L, S), int16, in units of ln 2 / STEPS, and the highest of each row.

    The highest (B, H, L), uint32, are those of the visible tokens plus 32769, or 0 without a token.

    x (B, H, L, Dt) are transformed queries, query their planes from `quantize_query`, and distances
    (B, H, L, S) their weighted distances. The level of an invisible token has no meaning.
    """
    device = _launch.device()
    B, H, L, S = distances.shape
    Dt, H_kv = x.shape[-1], codes.planes.shape[2]
    found = device.xp.empty(distances.shape, np.int16)
    highest = device.xp.zeros((B, H, L), np.uint32)
    centers: dict[str, Argument] = {}
    if codes.centers is not None:
        centers = head_centers(codes.centers)
    if found.size:
        sizes = {"H": H, "H_kv": H_kv, "L": L, "S": S, "size": BLOCK_TOKENS, "Dt": Dt}
        device.launch(
            ESTIMATE,
            (per_lane(Dt),),
            (B * H * L, -(-S // BLOCK_TOKENS)),
            THREADS,
            {
                "x": x,
                "query": query,
                "bits": query.shape[-1] // words(Dt),
                "distances": distances,
                **sizes,
                **centers,
                **head_thresholds(codes.thresholds),
                # A launch rounds it to float32.
                "levels_per_unit": float(STEPS / np.log(2) * scale),
                "levels": found,
                "highest": highest,
            },
        )
    return found, highest
