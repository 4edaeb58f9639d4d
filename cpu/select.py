"""The fused step: from raw queries to token indices, and on to attention over them."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache

import numpy as np
from numpy.typing import NDArray

from adamas_core.reference.layout import TILE, Codes, Selection, Softmax, padded
from adamas_core.reference.softmax import factor

from ._array import address_of, dtype_code, head_fields, k_fields, q_fields
from ._engine import Kernel, function
from ._records import Step
from .attend import attention_fields

_step = Kernel(Step, plan="plan_step", place="place_step", work="step_share")


def select_topk(
    q: NDArray,
    codes: Codes,
    budget: int,
    selection: Selection,
    k: NDArray | None = None,
    softmax: Softmax | None = None,
) -> NDArray[np.int32]:
    """Indices (B, H, L, budget) of the tokens nearest to the raw queries q (B, H, L, D)."""
    indices = np.empty((*q.shape[:3], budget), np.int32)
    if indices.size:
        fields: dict[str, float] = {
            "scale": factor(softmax, q.shape[3]),
            "budget": budget,
            "indices": address_of(indices),
        }
        if k is not None:
            fields.update(k_fields(k), refined=selection.refine * budget)
        run_step(q, codes, selection, fields)
    return indices


def attend_topk(
    q: NDArray,
    k: NDArray,
    v: NDArray,
    codes: Codes,
    budget: int,
    selection: Selection,
    softmax: Softmax | None = None,
) -> tuple[NDArray, NDArray[np.float32]]:
    """Attention to the tokens that select_topk takes: out (B, H, L, D_v) and lse."""
    out = np.empty((*q.shape[:3], v.shape[3]), q.dtype)
    lse = np.empty(q.shape[:3], np.float32)
    if lse.size:
        fields = attention_fields(k, v, softmax, out, lse) | {
            "out_dtype": dtype_code(out),
            "budget": budget,
            "refined": selection.refine * budget,
        }
        run_step(q, codes, selection, fields)
    return out, lse


def run_step(q: NDArray, codes: Codes, selection: Selection, others: Mapping[str, float]) -> None:
    """Run a step. `others` are the fields of the budget, of keys and values, and of the results."""
    planes = codes.planes
    to_low, planes_b, planes_h = planes.strides[:3]
    _, _, H_kv, T, _, P, _ = planes.shape
    length, lengths = 0, None
    if isinstance(codes.length, int):
        length = codes.length
    else:
        lengths = np.ascontiguousarray(codes.length, np.int64)
    slots = T * TILE
    _step(
        q_fields(q), _functions(selection.group, codes.centers is not None),
        _center_fields(codes), others,
        refined=min(others.get("refined", 0), slots),
        Dt=padded(q.shape[3]),
        planes=address_of(planes), to_low=to_low, planes_b=planes_b, planes_h=planes_h,
        H_kv=H_kv, slots=slots, P=P, thresholds=address_of(codes.thresholds),
        length=length,
        lengths=0 if lengths is None else address_of(lengths),
        weights=0 if selection.metric == "manhattan" else selection.query_bits - 1,
        sinks=selection.sinks, recent=selection.recent, group=selection.group,
    )  # fmt: skip


@cache
def _functions(group: bool, centered: bool) -> Mapping[str, int]:
    """The opaque functions of a step."""
    if group:
        collect, choose = "collect_group", "choose_estimated"
    elif centered:
        collect, choose = "collect_estimated", "choose_estimated"
    else:
        collect, choose = "collect", "choose"
    return {
        "score_tile": function("score_tile"),
        "collect": function(collect),
        "choose": function(choose),
        "rank_by_products": function("rank_by_products"),
        "attend_rows": function("attend_rows"),
    }


def _center_fields(codes: Codes) -> dict[str, int]:
    if codes.centers is None:
        return {}
    means, scales, _ = codes.centers
    return head_fields(means=means, scales=scales)
