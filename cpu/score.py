"""Distances between queries and coded keys."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ._array import address_of
from ._engine import Kernel, function
from ._records import Score

_score = Kernel(Score, plan="plan_score", work="score_block")


def score(
    query: NDArray[np.uint64],
    planes: NDArray[np.uint64],
    length: int | NDArray[np.integer],
    metric: str = "weighted",
) -> NDArray[np.uint16]:
    """Distances (B, H, L, S), S = max(length): sum over coordinates of w_i |c_i - e_i|."""
    B, H, L, width = query.shape
    H_kv, P = planes.shape[2], planes.shape[5]
    lengths = np.empty(B, np.int64)
    lengths[:] = length
    S = int(lengths.max(initial=0))
    distances = np.empty((B, H, L, S), np.uint16)
    if distances.size:
        query = np.ascontiguousarray(query)
        to_low, planes_b, planes_h = planes.strides[:3]
        _score(
            query=address_of(query), B=B, H=H, L=L, H_kv=H_kv, P=P,
            weights=0 if metric == "manhattan" else width // P - 1,
            planes=address_of(planes), to_low=to_low, planes_b=planes_b, planes_h=planes_h,
            lengths=address_of(lengths), S=S, distances=address_of(distances),
            score_tile=function("score_tile"),
        )  # fmt: skip
    return distances
