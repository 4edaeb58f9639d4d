"""Ranking selected tokens again, by their exact inner products."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from adamas_core.reference.layout import Selection

from ._array import address_of, k_fields, q_fields
from ._engine import Kernel, function
from ._records import Rerank

_rerank = Kernel(Rerank, plan="plan_rerank", work="rerank_row")


def rerank(
    q: NDArray,
    k: NDArray,
    indices: NDArray[np.int32],
    budget: int,
    selection: Selection,
) -> NDArray[np.int32]:
    """Indices (B, H, L, budget) of the tokens with the largest q.k among `indices`, ascending."""
    chosen = np.empty((*q.shape[:3], budget), np.int32)
    if chosen.size:
        indices = np.ascontiguousarray(indices, np.int32)
        last, S = indices.max(initial=-1), k.shape[2]
        if last >= S:
            raise IndexError(f"rerank: indices hold {last}; expected < {S}, the tokens of k")
        _rerank(
            q_fields(q), k_fields(k), H_kv=k.shape[1],
            indices=address_of(indices), M=indices.shape[3],
            budget=budget, sinks=selection.sinks, recent=selection.recent,
            chosen=address_of(chosen), rank_by_products=function("rank_by_products"),
        )  # fmt: skip
    return chosen
