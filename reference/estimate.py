"""Estimated inner products of queries and keys, from distances, the specification."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .center import scale_of
from .layout import INVISIBLE, TILE, Codes
from .quantize import unpack_bits
from .rerank import lane_sums


def estimate(
    x: NDArray[np.float32],
    query: NDArray[np.uint64],
    distances: NDArray[np.uint16],
    codes: Codes,
    fine: bool = False,
) -> NDArray[np.float32]:
    """Estimates (B, H, L, S) of the inner products of transformed queries x (B, H, L, Dt) and keys.

    query (B, H, L, bits * P) is quantize_query(x, bits), and distances (B, H, L, S) are its
    weighted distances. A coordinate of the query stands for sign w m / wmax, where m is the largest
    |x|. A coordinate of a key stands for (c - 1.5) s. So the inner product is
    (3 W - 2 d) s m / (2 wmax), where W is the sum of the query's weights and d the distance. It is
    computed as two float32 products. For centered codes s is the scale of the token. For plain
    codes it is half of the distance between the outer thresholds.

    For centered codes the inner product of x and the mean of the tile is added. Its sum has the
    order of `lane_sums`.

    With `fine` the estimates are those of three bits: a coordinate of a key stands for
    (c - 1.5 + b / 2 - 1 / 4) s, where b is its third bit and s the scale of three bits. So the
    inner product is (2 (3 W - 2 d) + N) s m / (4 wmax), where N is the sum of w over the
    coordinates with b equal to the query's sign bit, minus that of the others.
    """
    B, H, L, S = distances.shape
    P, G = codes.planes.shape[5], H // codes.planes.shape[2]
    bits = query.shape[-1] // P
    top = np.fmax.reduce(np.abs(x), axis=-1, keepdims=True, initial=0)
    wmax = 2 ** (bits - 1) - 1
    unit: NDArray[np.float32] = np.divide(top, 2 * wmax, dtype=np.float32)  # (B, H, L, 1)
    sign, *planes = np.split(unpack_bits(query).astype(np.int64), bits, axis=-1)
    w = np.zeros_like(sign)  # (B, H, L, 64 P)
    for plane in planes:
        w = 2 * w + plane
    n = 3 * w.sum(axis=-1, keepdims=True) - 2 * distances.astype(np.int64)  # below 2^18
    if fine:
        n = 2 * n + _on_third_bits(sign, w, codes)  # below 2^20
        unit = unit / np.float32(2)
    with np.errstate(over="ignore", invalid="ignore"):
        if codes.centers is None:
            step = (codes.thresholds[:, 2] - codes.thresholds[:, 0]) * np.float32(0.5)
            plain: NDArray[np.float32] = (
                n.astype(np.float32) * np.repeat(step, G)[:, None, None] * unit
            )
            return plain
        means, scales, _ = codes.centers
        if fine:
            scales = codes.fine.scales  # type: ignore[union-attr]
        s = scale_of(scales).reshape(*scales.shape[:2], -1)[:, :, :S]  # (B, H_kv, S)
        estimates: NDArray[np.float32] = (
            n.astype(np.float32) * np.repeat(s, G, axis=1)[:, :, None] * unit
        )
        for b, h, l in np.ndindex(B, H, L):
            mean = means[b, h // G].astype(np.float32)  # (T, Dt)
            on_means = lane_sums(x[b, h, l] * mean)  # (T,)
            estimates[b, h, l] += np.repeat(on_means, TILE)[:S]
    return estimates


def _on_third_bits(
    sign: NDArray[np.int64], w: NDArray[np.int64], codes: Codes
) -> NDArray[np.int64]:
    """N (B, H, L, S) of `estimate`, from the sign bits and the weights (B, H, L, 64 P)."""
    B, H, L, _ = w.shape
    bits = codes.fine.bits  # type: ignore[union-attr]
    third = unpack_bits(bits).reshape(B, bits.shape[1], -1, w.shape[-1])  # (B, H_kv, 64 T, 64 P)
    S = int(np.max(codes.length, initial=0))
    N = np.zeros((B, H, L, S), np.int64)
    for b, h, l in np.ndindex(B, H, L):
        agree = third[b, h * bits.shape[1] // H, :S] == sign[b, h, l]
        N[b, h, l] = (2 * agree - 1) @ w[b, h, l]
    return N


def rank(estimates: NDArray[np.float32], distances: NDArray[np.uint16]) -> NDArray[np.uint32]:
    """Integers that rise as estimates fall, so that topk takes the largest estimates.

    An invisible token has 2^32 - 1. The bits of a positive float32, read as an integer, rise with
    the number; those of a negative one fall. NaN counts as minus infinity and -0 as 0.
    """
    x = np.where(np.isnan(estimates), np.float32(-np.inf), estimates) + np.float32(0)
    bits = x.view(np.uint32)
    ranks = np.where(bits >> 31, bits, bits ^ np.uint32(0x7FFFFFFF))
    return np.where(distances == INVISIBLE, np.uint32(0xFFFFFFFF), ranks)
