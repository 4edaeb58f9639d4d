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
    """
    B, H, L, S = distances.shape
    P, G = codes.planes.shape[5], H // codes.planes.shape[2]
    bits = query.shape[-1] // P
    top = np.fmax.reduce(np.abs(x), axis=-1, keepdims=True, initial=0)
    wmax = 2 ** (bits - 1) - 1
    unit: NDArray[np.float32] = np.divide(top, 2 * wmax, dtype=np.float32)  # (B, H, L, 1)
    W = np.zeros((B, H, L, 1), np.int64)
    for b, plane in enumerate(reversed(range(bits - 1)), 1):
        words = query[..., b * P : (b + 1) * P]
        W += unpack_bits(words).sum(axis=-1, keepdims=True, dtype=np.int64) << plane
    n = (3 * W - 2 * distances.astype(np.int64)).astype(np.float32)  # exact, below 2^18
    with np.errstate(over="ignore", invalid="ignore"):
        if codes.centers is None:
            step = (codes.thresholds[:, 2] - codes.thresholds[:, 0]) * np.float32(0.5)
            plain: NDArray[np.float32] = n * np.repeat(step, G)[:, None, None] * unit
            return plain
        means, scales, _ = codes.centers
        s = scale_of(scales).reshape(*scales.shape[:2], -1)[:, :, :S]  # (B, H_kv, S)
        estimates: NDArray[np.float32] = n * np.repeat(s, G, axis=1)[:, :, None] * unit
        for b, h, l in np.ndindex(B, H, L):
            mean = means[b, h // G].astype(np.float32)  # (T, Dt)
            on_means = lane_sums(x[b, h, l] * mean)  # (T,)
            estimates[b, h, l] += np.repeat(on_means, TILE)[:S]
    return estimates


def rank(estimates: NDArray[np.float32], distances: NDArray[np.uint16]) -> NDArray[np.uint32]:
    """Integers that rise as estimates fall, so that topk takes the largest estimates.

    An invisible token has 2^32 - 1. The bits of a positive float32, read as an integer, rise with
    the number; those of a negative one fall. NaN counts as minus infinity and -0 as 0.
    """
    x = np.where(np.isnan(estimates), np.float32(-np.inf), estimates) + np.float32(0)
    bits = x.view(np.uint32)
    ranks = np.where(bits >> 31, bits, bits ^ np.uint32(0x7FFFFFFF))
    return np.where(distances == INVISIBLE, np.uint32(0xFFFFFFFF), ranks)
