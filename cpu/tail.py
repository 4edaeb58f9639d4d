"""Attention to all tokens in three tiers: exact, by codes, and the rest together."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from adamas_core.reference.layout import Codes, Selection, Softmax, Values, padded, words

from ._array import address_of, dtype_code, head_fields
from ._engine import function
from .attend import attention_fields
from .select import attend_topk, run_step


def attend_tail(
    q: NDArray,
    k: NDArray,
    v: NDArray,
    codes: Codes,
    values: Values,
    budget: int,
    selection: Selection,
    softmax: Softmax | None = None,
) -> tuple[NDArray, NDArray[np.float32]]:
    """Attention of q (B, H, L, D) to all visible tokens of k and v: out (B, H, L, D_v) and lse."""
    tail = min(selection.tail, k.shape[2])
    if tail == 0:
        return attend_topk(q, k, v, codes, budget, selection, softmax)
    out = np.empty((*q.shape[:3], v.shape[3]), q.dtype)
    lse = np.empty(q.shape[:3], np.float32)
    if lse.size:
        total = np.ascontiguousarray(values.total)
        third, finer = codes.fine  # type: ignore[misc]
        fields: dict[str, float] = {
            **attention_fields(k, v, softmax, out, lse),
            "out_dtype": dtype_code(out),
            "budget": budget,
            "refined": selection.refine * budget,
            "choose": function("choose_tail"),
            "tail": tail,
            "add_tail": function("add_tail"),
            "Dvt": padded(v.shape[3]),
            "Pv": words(v.shape[3]),
            **head_fields(third=third, finer=finer),
            **head_fields(v_codes=values.codes, v_scales=values.scales, bases=values.bases),
            "total": address_of(total),
        }
        run_step(q, codes, selection, fields)
    return out, lse
