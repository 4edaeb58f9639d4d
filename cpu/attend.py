"""Softmax attention over chosen tokens."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from adamas_core.reference.layout import Softmax
from adamas_core.reference.softmax import factor

from ._array import address_of, dtype_code, k_fields, q_fields, v_fields
from ._engine import Kernel, function
from ._records import Dense, Step

_attend = Kernel(Step, plan="plan_attend", work="attend_share")
_attend_dense = Kernel(
    Dense, plan="plan_dense", place="place_dense", work="attend_block", finish="merge_splits"
)


def attend(
    q: NDArray,
    k: NDArray,
    v: NDArray,
    indices: NDArray[np.int32] | None,
    softmax: Softmax | None = None,
    return_lse: bool = False,
    window: int | None = None,
) -> NDArray | tuple[NDArray, NDArray[np.float32]]:
    """Attention of q (B, H, L, D) over the rows `indices` (B, H, L, K) of k and v.

    Without indices each query sees the last `window` tokens up to itself, or all of them.
    """
    out = np.empty((*q.shape[:3], v.shape[3]), q.dtype)
    lse = np.empty(q.shape[:3], np.float32)
    if out.size:
        attention = attention_fields(k, v, softmax, out, lse)
        if indices is None:
            S = k.shape[2]
            window = S if window is None else min(window, S)
            _attend_dense(q_fields(q), attention, H_kv=k.shape[1], window=window)
        else:
            indices = np.ascontiguousarray(indices, np.int32)
            record = _attend(
                q_fields(q), attention, attend_rows=function("attend_rows"),
                H_kv=k.shape[1], indices=address_of(indices), budget=indices.shape[3],
                out_dtype=dtype_code(out),
            )  # fmt: skip
            bad = record["bad"][0]
            if bad >= 0:
                raise IndexError(
                    f"attend: indices hold {bad}; expected < {k.shape[2]}, the tokens of k and v"
                )
    return (out, lse) if return_lse else out


def attention_fields(
    k: NDArray, v: NDArray, softmax: Softmax | None, out: NDArray, lse: NDArray[np.float32]
) -> dict[str, float]:
    """Fields of a record: keys, values, the softmax and the places of the results."""
    fields: dict[str, float] = {
        "out": address_of(out),
        "lse": address_of(lse),
        "scale": factor(softmax, k.shape[3]),
    }
    if softmax is not None:
        if softmax.soft_cap is not None:
            fields["soft_cap"] = softmax.soft_cap
        if softmax.sink_logits is not None:
            fields["sink_logits"] = address_of(softmax.sink_logits)
    fields.update(k_fields(k))
    fields.update(v_fields(v))
    return fields
