"""From a raw query to token indices, the specification."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .hadamard import hadamard
from .quantize import quantize, quantize_query
from .score import score
from .topk import topk

if TYPE_CHECKING:
    from adamas_core.codes import KeyCodes


def select_topk(
    q: NDArray[Any],
    codes: KeyCodes,
    budget: int,
    metric: str = "weighted",
    query_bits: int = 4,
    sinks: int = 0,
    recent: int = 0,
) -> NDArray[np.int32]:
    """Indices (B, H, L, budget) of the tokens nearest to the raw queries q (B, H, L, D)."""
    x = hadamard(q)
    if metric == "manhattan":
        G = q.shape[1] // codes.planes.shape[2]
        query = quantize(x, np.repeat(codes.thresholds, G, axis=0))
    else:
        query = quantize_query(x, query_bits)
    return topk(score(query, codes.planes, codes.length, metric), budget, sinks, recent)
