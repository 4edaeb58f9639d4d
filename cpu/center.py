"""Codes of keys relative to the mean of their tile, with a scale per token."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from adamas_core.reference.layout import Centers, Fine, padded, words

from ._array import address_of, dtype_code, head_fields
from ._engine import Kernel
from ._records import EncodeCentered

_encode_centered = Kernel(
    EncodeCentered,
    plan="plan_centered",
    work="encode_full_tile",
    finish="encode_last_tokens",
)


def encode_centered(
    k: NDArray,
    thresholds: NDArray[np.float32],
    planes: NDArray[np.uint64],
    centers: Centers,
    start: int | NDArray[np.integer] = 0,
    count: int | NDArray[np.integer] | None = None,
    fine: Fine | None = None,
) -> NDArray[np.uint64]:
    """Make keys k (B, H_kv, S, D) the tokens start, start + 1, ... of planes and centers."""
    B, H_kv, S, D = k.shape
    if k.size:
        limits = np.ascontiguousarray(np.broadcast_to(thresholds, (H_kv, 3)), np.float32)
        span = np.empty((B, 2), np.int64)
        span[:, 0] = start
        span[:, 1] = span[:, 0] + (S if count is None else count)
        k_b, k_h, k_s, _ = k.strides
        to_low, planes_b, planes_h = planes.strides[:3]
        beside = head_fields(**centers._asdict())
        if fine is not None:
            beside |= head_fields(third=fine.bits, third_scales=fine.scales)
        _encode_centered(
            beside,
            k=address_of(k), dtype=dtype_code(k), k_b=k_b, k_h=k_h, k_s=k_s,
            B=B, H_kv=H_kv, S=S, D=D, Dt=padded(D), P=words(D),
            thresholds=address_of(limits), span=address_of(span),
            planes=address_of(planes), to_low=to_low, planes_b=planes_b, planes_h=planes_h,
        )  # fmt: skip
    return planes
