"""Codes of values, each relative to a base of its head, with a scale per token."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from adamas_core.reference.center import CENTERED_THRESHOLDS
from adamas_core.reference.layout import padded, words

from ._array import address_of, dtype_code, head_fields
from ._engine import Kernel
from ._records import EncodeValues

_encode_values = Kernel(
    EncodeValues, plan="plan_values", work="sum_values", finish="encode_values_block"
)


def encode_values(
    v: NDArray,
    codes: NDArray[np.uint64],
    scales: NDArray[np.uint8],
    bases: NDArray[np.float32],
    start: int | NDArray[np.integer] = 0,
    count: int | NDArray[np.integer] | None = None,
) -> NDArray[np.uint64]:
    """Make values v (B, H_kv, S, D) the tokens start, start + 1, ... of codes and scales."""
    B, H_kv, S, D = v.shape
    if v.size:
        span = np.empty((B, 2), np.int64)
        span[:, 0] = start
        span[:, 1] = S if count is None else count
        v_b, v_h, v_s, _ = v.strides
        _encode_values(
            head_fields(codes=codes, scales=scales, bases=bases),
            v=address_of(v), dtype=dtype_code(v), v_b=v_b, v_h=v_h, v_s=v_s,
            B=B, H_kv=H_kv, S=S, D=D, Dt=padded(D), P=words(D),
            thresholds=address_of(CENTERED_THRESHOLDS), span=address_of(span),
        )  # fmt: skip
    return codes
