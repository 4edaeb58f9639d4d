"""Codes of keys and queries, in their packed layouts."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from adamas_core.reference.layout import padded, tiles, words

from ._array import address_of, dtype_code, with_four_axes
from ._engine import Kernel
from ._records import Encode, Quantize

try:
    from ._pack import append
except ImportError:  # a source tree whose compiled module was never built
    append = None  # type: ignore[assignment]

# With at most this many keys one thread is done before a parallel kernel has been called: it takes
# 0.5 us per key at D = 128, and the call takes 13 us.
FEW_KEYS = 24

_quantize = Kernel(Quantize, plan="plan_quantize", work="quantize_block")
_encode = Kernel(Encode, plan="plan_encode", work="encode_block")


def quantize(x: NDArray[np.float32], thresholds: NDArray[np.float32]) -> NDArray[np.uint64]:
    """Bucketize transformed x (..., Dt) into packed 2-bit codes, rows (..., 2P)."""
    codes = np.empty((*x.shape[:-1], 2 * words(x.shape[-1])), np.uint64)
    if codes.size:
        limits, head_bytes = _limits(thresholds)
        x = with_four_axes(x)
        fields = _x_fields(x)
        _quantize(
            fields,
            thresholds=address_of(limits),
            head_bytes=head_bytes,
            target=address_of(codes),
        )
    return codes


def quantize_query(x: NDArray[np.float32], bits: int = 4) -> NDArray[np.uint64]:
    """Split transformed queries x (..., Dt) into packed bit planes (..., bits * P)."""
    planes = np.empty((*x.shape[:-1], bits * words(x.shape[-1])), np.uint64)
    if planes.size:
        x = with_four_axes(x)
        _quantize(_x_fields(x), bits=bits, target=address_of(planes))
    return planes


def encode(
    k: NDArray,
    thresholds: NDArray[np.float32],
    planes: NDArray[np.uint64] | None = None,
    start: int | NDArray[np.integer] = 0,
) -> NDArray[np.uint64]:
    """Key planes (2, B, H_kv, T, 8, P, 8) of k (B, H_kv, S, D), or k's tokens put into `planes`."""
    B, H_kv, S, D = k.shape
    if planes is None:
        start = 0
        planes = np.zeros((2, B, H_kv, tiles(S), 8, words(D), 8), np.uint64)
    if append is not None and B * H_kv * S <= FEW_KEYS:
        append(k, thresholds, planes, start)
    elif k.size:
        limits, head_bytes = _limits(thresholds)
        first = np.empty(B, np.int64)
        first[:] = start
        k_b, k_h, k_s, _ = k.strides
        to_low, planes_b, planes_h = planes.strides[:3]
        _encode(
            k=address_of(k), dtype=dtype_code(k), k_b=k_b, k_h=k_h, k_s=k_s,
            B=B, H_kv=H_kv, S=S, D=D, Dt=padded(D), P=words(D), first=address_of(first),
            thresholds=address_of(limits), head_bytes=head_bytes,
            planes=address_of(planes), to_low=to_low, planes_b=planes_b, planes_h=planes_h,
        )  # fmt: skip
    return planes


def _x_fields(x: NDArray[np.float32]) -> dict[str, int]:
    x_b, x_h, x_l, _ = x.strides
    B, H, L, D = x.shape
    return {
        "x": address_of(x),
        "x_b": x_b,
        "x_h": x_h,
        "x_l": x_l,
        "B": B,
        "H": H,
        "L": L,
        "D": D,
        "P": words(D),
    }


def _limits(thresholds: NDArray[np.float32]) -> tuple[NDArray[np.float32], int]:
    """Contiguous thresholds, and the bytes from one head's to the next: 0 if heads share them."""
    thresholds = np.ascontiguousarray(thresholds, np.float32)
    return thresholds, 12 if thresholds.size > 3 else 0
