"""From a raw query to token indices, the specification."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .attend import attend
from .estimate import estimate, rank
from .group import pool
from .hadamard import hadamard
from .quantize import quantize, quantize_query
from .rerank import rerank
from .score import INVISIBLE, score
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
    prefilter: int = 0,
    refine: int = 0,
    group: bool = False,
    k: NDArray[Any] | None = None,
) -> NDArray[np.int32]:
    """Indices (B, H, L, budget) of the tokens nearest to the raw queries q (B, H, L, D).

    With a prefilter only the prefilter * budget tokens compete that are nearest by their high
    plane, which is the sign of each coordinate. To refine is to take the refine * budget nearest,
    and of these the budget of largest inner product with the keys k (B, H_kv, S, D). Centered
    codes rank tokens by estimates of that product. With `group` the heads of a KV head choose
    together.
    """
    x = hadamard(q)
    G = q.shape[1] // codes.planes.shape[2]
    if metric == "manhattan":
        query = quantize(x, np.repeat(codes.thresholds, G, axis=0))
    else:
        query = quantize_query(x, query_bits)

    def distances_by(planes: NDArray[np.uint64]) -> NDArray[np.unsignedinteger]:
        distances = score(query, planes, codes.length, metric)
        if codes.centers is None and not group:
            return distances
        estimates = estimate(x, query, distances, codes)
        if group:
            estimates = pool(estimates, distances != INVISIBLE, G, q.shape[-1])
            distances = distances[:, ::G]  # which tokens they see is what the heads share
        return rank(estimates, distances)

    distances = distances_by(codes.planes)
    if group:
        return np.repeat(topk(distances, budget, sinks, recent), G, axis=1)
    if prefilter:
        high = codes.planes[0]
        # Codes of 0 and 3 alone, which is what the high plane tells apart.
        coarse = distances_by(np.stack([high, high]))
        K = min(prefilter * budget, distances.shape[-1])
        kept = topk(coarse, K, sinks, recent)  # (B, H, L, K)
        competing = np.full_like(distances, np.iinfo(distances.dtype).max)
        row = np.indices(kept.shape)[:-1]  # (3, B, H, L, K)
        some = kept >= 0
        at = (*row[:, some], kept[some])
        competing[at] = distances[at]
        distances = competing
    if k is not None and refine:
        nearest = topk(distances, min(refine * budget, distances.shape[-1]), sinks, recent)
        return rerank(q, k, nearest, budget, sinks, recent)
    return topk(distances, budget, sinks, recent)


def attend_topk(
    q: NDArray[Any],
    k: NDArray[Any],
    v: NDArray[Any],
    codes: KeyCodes,
    budget: int,
    metric: str = "weighted",
    query_bits: int = 4,
    sinks: int = 0,
    recent: int = 0,
    prefilter: int = 0,
    refine: int = 0,
    group: bool = False,
    scale: float | None = None,
) -> tuple[NDArray[Any], NDArray[np.float32]]:
    """Attention over what select_topk takes of k, v (B, H_kv, S, D): out (B, H, L, D) and lse."""
    options = metric, query_bits, sinks, recent, prefilter, refine, group, k
    indices = select_topk(q, codes, budget, *options)
    return attend(q, k, v, indices, scale, True)  # type: ignore[return-value]
