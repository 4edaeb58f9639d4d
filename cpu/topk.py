"""Exact selection of the nearest tokens."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from adamas_core.reference.layout import Selection

from ._array import address_of, with_four_axes
from ._engine import Kernel
from ._records import TopK

_topk = Kernel(TopK, plan="plan_topk", work="topk_row")


def topk(distances: NDArray[np.uint16], budget: int, selection: Selection) -> NDArray[np.int32]:
    """Indices (B, H, L, budget) of the tokens with the smallest distances (B, H, L, S)."""
    indices = np.empty((*distances.shape[:-1], budget), np.int32)
    if indices.size:
        rows = with_four_axes(distances)
        stride_b, stride_h, stride_l, _ = rows.strides
        B, H, L, S = rows.shape
        _topk(
            distances=address_of(rows), stride_b=stride_b, stride_h=stride_h, stride_l=stride_l,
            B=B, H=H, L=L, S=S, budget=budget, sinks=selection.sinks, recent=selection.recent,
            indices=address_of(indices),
        )  # fmt: skip
    return indices
