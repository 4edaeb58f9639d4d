"""The fused step: from raw queries to token indices, and on to attention over them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from adamas_core.reference.layout import TILE, Codes, Selection, padded

from ._array import address_of, dtype_code, head_fields, k_fields, q_fields
from ._schedule import run
from ._search import choose, collect
from ._step import Step
from .attend import attend_rows, attention_fields
from .estimate import choose_estimated, collect_estimated
from .group import collect_group
from .rerank import rank_by_products
from .score import score_tile


def select_topk(
    q: NDArray,
    codes: Codes,
    budget: int,
    selection: Selection,
    k: NDArray | None = None,
    scale: float | None = None,
) -> NDArray[np.int32]:
    """Indices (B, H, L, budget) of the tokens nearest to the raw queries q (B, H, L, D)."""
    indices = np.empty((*q.shape[:3], budget), np.int32)
    if indices.size:
        refine = 0 if k is None else selection.refine
        others: dict[str, float] = {"scale": q.shape[3] ** -0.5 if scale is None else float(scale)}
        if k is not None:
            others.update(k_fields(k))
        run_step(q, codes, indices, selection, refine * budget, others)
    return indices


def attend_topk(
    q: NDArray,
    k: NDArray,
    v: NDArray,
    codes: Codes,
    budget: int,
    selection: Selection,
    scale: float | None = None,
) -> tuple[NDArray, NDArray[np.float32]]:
    """Attention to the tokens that select_topk takes of k, v (B, H_kv, S, D): out and lse."""
    out = np.empty(q.shape, q.dtype)
    lse = np.empty(q.shape[:3], np.float32)
    if lse.size:
        indices = np.empty((*q.shape[:3], budget), np.int32)
        attention = attention_fields(k, v, scale, out, lse) | {"out_dtype": dtype_code(out)}
        run_step(q, codes, indices, selection, selection.refine * budget, attention)
    return out, lse


def run_step(
    q: NDArray,
    codes: Codes,
    indices: NDArray[np.int32],
    selection: Selection,
    refined: int,
    others: Mapping[str, float],
) -> None:
    """Fill the record of a step and run it. `others` are fields of keys, values and results."""
    planes = codes.planes
    to_low, planes_b, planes_h = planes.strides[:3]
    _, _, H_kv, T, _, P, _ = planes.shape
    length, lengths = 0, None
    if isinstance(codes.length, int):
        length = codes.length
    else:
        lengths = np.ascontiguousarray(codes.length, np.int64)
    record = Step(
        q_fields(q), _functions(codes, selection), _center_fields(codes), others,
        Dt=padded(q.shape[3]),
        planes=address_of(planes), to_low=to_low, planes_b=planes_b, planes_h=planes_h,
        H_kv=H_kv, slots=T * TILE, P=P, thresholds=address_of(codes.thresholds),
        length=length,
        lengths=0 if lengths is None else address_of(lengths),
        weights=0 if selection.metric == "manhattan" else selection.query_bits - 1,
        budget=indices.shape[3], refined=min(refined, T * TILE),
        sinks=selection.sinks, recent=selection.recent, group=selection.group,
        indices=address_of(indices),
    )  # fmt: skip
    run(record)


def _functions(codes: Codes, selection: Selection) -> dict[str, int]:
    """The opaque functions of a step."""
    if selection.group:
        found = collect_group, choose_estimated
    elif codes.centers is not None:
        found = collect_estimated, choose_estimated
    else:
        found = collect, choose
    return {
        "score_tile": score_tile.address,
        "collect": found[0].address,
        "choose": found[1].address,
        "rank_by_products": rank_by_products.address,
        "attend_rows": attend_rows.address,
    }


def _center_fields(codes: Codes) -> dict[str, int]:
    if codes.centers is None:
        return {}
    means, scales, _ = codes.centers
    return head_fields(means=means, scales=scales)
