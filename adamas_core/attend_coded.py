"""Attention over coded keys, with coded values or without, at usual positions or at others."""

from __future__ import annotations

from typing import Any

import numpy as np

from . import value_store
from .positions import in_runs, together
from .reference.layout import Codes
from .selection import Selection
from .softmax import Softmax
from .value_store import CodedValues

NDArray = np.ndarray[Any, Any]


def attend_coded(
    home: Any,
    rows: tuple[Any, Any, Any],
    codes: Codes,
    values: CodedValues | None,
    budget: int,
    selection: Selection,
    softmax: Softmax,
    seen: NDArray | None,
) -> tuple[Any, Any]:
    """Attention (B, H, L, D_v) and lse of checked q, k and v; each query sees `seen` (B, L) tokens.

    With values all tokens count, else only the chosen ones. Without `seen` the queries are the last
    L tokens.
    """
    q, k, v = rows
    if seen is None:
        if values is None:
            return home.attend_topk(q, k, v, codes, budget, selection, softmax)  # type: ignore[no-any-return]
        record = values.record()
        return home.attend_tail(q, k, v, codes, record, budget, selection, softmax)  # type: ignore[no-any-return]

    def call(part: Any, lengths: NDArray, softmax: Softmax) -> tuple[Any, ...]:
        own = codes._replace(length=lengths)
        if values is None:
            return home.attend_topk(part, k, v, own, budget, selection, softmax)  # type: ignore[no-any-return]
        record = value_store.record_of_first(values, v, lengths)
        return home.attend_tail(part, k, v, own, record, budget, selection, softmax)  # type: ignore[no-any-return]

    out, lse = together(in_runs(q, seen, softmax, call, selection.group))
    return out, lse
