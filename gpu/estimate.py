"""Estimated inner products of queries and keys, as numbers to select by or to pool."""

from __future__ import annotations

from typing import Any

import numpy as np

from adamas_core.reference.group import STEPS
from adamas_core.reference.layout import TILE, Codes, words

from . import _launch
from ._arrays import head_thresholds, strides
from ._kernels import ESTIMATE
from ._launch import Argument, Array
from ._warps import THREADS, per_lane

BLOCK_TOKENS = 32 * TILE  # per block, so eight tiles per warp


def ranks(x: Array, query: Array, distances: Array, codes: Codes) -> Array:
    """Integers (B, H, L, S), uint32, that rise as the estimates fall; 2^32 - 1 where invisible.

    x (B, H, L, Dt) are transformed queries, query their planes from `quantize_query`, and distances
    (B, H, L, S) their weighted distances.
    """
    return _estimate(x, query, distances, codes, np.uint32)


def levels(x: Array, query: Array, distances: Array, codes: Codes, scale: float) -> Array:
    """Logits scale q.k (B, H, L, S), int16, in units of ln 2 / STEPS.

    Arguments as for `ranks`. The level of an invisible token has no meaning.
    """
    levels_per_unit = float(STEPS / np.log(2) * scale)  # a launch rounds it to float32
    return _estimate(x, query, distances, codes, np.int16, levels_per_unit)


# The types of the results in estimate.cu.
_RESULTS = {np.uint32: "unsigned", np.int16: "short"}


def _estimate(
    x: Array,
    query: Array,
    distances: Array,
    codes: Codes,
    dtype: Any,
    levels_per_unit: float = 0.0,
) -> Array:
    device = _launch.device()
    B, H, L, S = distances.shape
    Dt, H_kv = x.shape[-1], codes.planes.shape[2]
    results = device.xp.empty(distances.shape, dtype)
    centers: dict[str, Argument] = {}
    if codes.centers is not None:
        head = ("batch", "head")
        centers |= strides("means", codes.centers.means, head)
        centers |= strides("scales", codes.centers.scales, head)
    if results.size:
        sizes = {"H": H, "H_kv": H_kv, "L": L, "S": S, "size": BLOCK_TOKENS, "Dt": Dt}
        device.launch(
            ESTIMATE,
            (per_lane(Dt), _RESULTS[dtype]),
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
                "levels_per_unit": levels_per_unit,
                "results": results,
            },
        )
    return results
