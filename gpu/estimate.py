"""Estimated inner products of queries and keys, as numbers to select or to pool by."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from adamas_core.reference.group import STEPS
from adamas_core.reference.quantize import TILE

from . import _launch
from ._kernels import ESTIMATE
from ._launch import Array
from ._rows import THREADS, leading_strides, limits, per_lane, words

if TYPE_CHECKING:
    from adamas_core.codes import KeyCodes

SIZE = 32 * TILE  # tokens a block, eight tiles for each of its warps


def ranks(x: Array, query: Array, distances: Array, codes: KeyCodes) -> Array:
    """Numbers (B, H, L, S), uint32, that ascend as the estimates fall; 2^32 - 1 where invisible.

    x (B, H, L, Dt) are transformed queries, query what `quantize_query` makes of them, and
    distances (B, H, L, S) their weighted distances.
    """
    return _estimate(x, query, distances, codes, "unsigned", np.uint32, 0.0)


def levels(x: Array, query: Array, distances: Array, codes: KeyCodes, D: int) -> Array:
    """Estimates (B, H, L, S) as int16, in quarters of a halving of attention at head_dim D.

    Arguments as of `ranks`. What stands where a token is invisible means nothing.
    """
    unit = float(STEPS / np.log(2) * D**-0.5)  # rounded to float32 when it is launched
    return _estimate(x, query, distances, codes, "short", np.int16, unit)


def _estimate(
    x: Array,
    query: Array,
    distances: Array,
    codes: KeyCodes,
    result: str,
    dtype: Any,
    unit: float,
) -> Array:
    device = _launch.device()
    B, H, L, S = distances.shape
    Dt, H_kv = x.shape[-1], codes.planes.shape[2]
    results = device.xp.empty(distances.shape, dtype)
    if codes.centers is None:
        centers: tuple[Any, ...] = (None, 0, 0, None, 0, 0)
    else:
        means, scales, _ = codes.centers
        centers = (means, *leading_strides(means)[:2], scales, *leading_strides(scales)[:2])
    if results.size:
        device.launch(
            ESTIMATE,
            (per_lane(Dt), result),
            (B * H * L, -(-S // SIZE)),
            THREADS,
            (
                *(x, query, query.shape[-1] // words(Dt), distances, H, H_kv, L, S, SIZE, Dt),
                *(*centers, *limits(codes.thresholds), unit, results),
            ),
        )
    return results
