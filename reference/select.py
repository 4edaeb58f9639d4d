"""From a raw query to token indices, the specification."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .attend import attend
from .estimate import estimate, rank
from .group import pool
from .hadamard import hadamard
from .layout import INVISIBLE, Codes, Selection, Softmax
from .quantize import quantize, quantize_query
from .rerank import rerank
from .score import score
from .softmax import factor
from .topk import topk


def select_topk(
    q: NDArray[Any],
    codes: Codes,
    budget: int,
    selection: Selection,
    k: NDArray[Any] | None = None,
    softmax: Softmax | None = None,
) -> NDArray[np.int32]:
    """Indices (B, H, L, budget) of the tokens nearest to the raw queries q (B, H, L, D).

    Plain codes rank tokens by their distances. Centered codes rank them by estimates of q.k. With
    `selection.group` the query heads of a KV head make one choice, and all of them get it. It
    depends on the scale of `softmax`, and neither on its cap nor on its sinks. With
    `selection.refine` the refine * budget nearest tokens are taken first, and from these the
    `budget` tokens with the largest inner products with the keys k (B, H_kv, S, D).
    """
    x = hadamard(q)  # (B, H, L, Dt)
    G = q.shape[1] // codes.planes.shape[2]
    if selection.metric == "manhattan":
        query = quantize(x, np.repeat(codes.thresholds, G, axis=0))  # (B, H, L, 2P)
    else:
        query = quantize_query(x, selection.query_bits)  # (B, H, L, bits * P)
    distances = score(query, codes.planes, codes.length, selection.metric)  # (B, H, L, S)

    if selection.group:
        estimates = estimate(x, query, distances, codes)  # (B, H, L, S)
        attention = pool(estimates, distances != INVISIBLE, G, factor(softmax, q.shape[-1]))
        # All heads of a group see the same tokens, so the distances of the first head tell which.
        chosen = topk(rank(attention, distances[:, ::G]), budget, selection)
        return np.repeat(chosen, G, axis=1)

    ranks: NDArray[np.unsignedinteger] = distances
    if codes.centers is not None:
        ranks = rank(estimate(x, query, distances, codes), distances)
    if selection.refine and k is not None:
        nearest = topk(ranks, min(selection.refine * budget, ranks.shape[-1]), selection)
        return rerank(q, k, nearest, budget, selection)
    return topk(ranks, budget, selection)


def attend_topk(
    q: NDArray[Any],
    k: NDArray[Any],
    v: NDArray[Any],
    codes: Codes,
    budget: int,
    selection: Selection,
    softmax: Softmax | None = None,
) -> tuple[NDArray[Any], NDArray[np.float32]]:
    """Attention to the tokens that select_topk takes: out (B, H, L, D_v) and lse, as `attend`."""
    indices = select_topk(q, codes, budget, selection, k, softmax)
    return attend(q, k, v, indices, softmax, True)  # type: ignore[return-value]
