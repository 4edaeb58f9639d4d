"""Distances between queries and coded keys, the specification."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .layout import INVISIBLE
from .quantize import from_planes, unpack_bits


def visible_tokens(length: NDArray[np.integer], L: int) -> NDArray[np.int64]:
    """Tokens that each query sees (B, L): the last query sees all, the one before it one less."""
    seen: NDArray[np.int64] = np.asarray(length, np.int64)[:, None] - np.arange(L)[::-1]
    return np.maximum(seen, 0)


def score(
    query: NDArray[np.uint64],
    planes: NDArray[np.uint64],
    length: int | NDArray[np.integer],
    metric: str = "weighted",
) -> NDArray[np.uint16]:
    """Distances (B, H, L, S), S = max(length): the sum over coordinates of w_i |c_i - e_i|.

    c_i is the key's code, 0 to 3, from planes (2, B, H_kv, T, 8, P, 8). With metric "manhattan" the
    query holds its own codes (B, H, L, 2P): these are e, and w = 1. With "weighted" the query holds
    bit planes (B, H, L, bits * P): e is 3 times the sign plane, and the other planes hold w. A
    distance is at most 21 Dt for 4 bits, so uint16 holds it up to Dt = 2048.

    The queries are the last L of the `length` tokens of their sequence; length is an int or (B,).
    A query sees the tokens up to itself. All others have the distance 65535.
    """
    B, H, L, width = query.shape
    H_kv, P = planes.shape[2], planes.shape[5]
    length = np.broadcast_to(length, (B,))
    S = int(length.max(initial=0))

    high, low = np.split(unpack_bits(from_planes(planes)[:, :, :S]), 2, axis=-1)
    c = (2 * high + low).astype(np.int32)  # (B, H_kv, S, 64 P)

    bits = unpack_bits(query).reshape(B, H, L, width // P, 64 * P).astype(np.int32)
    if metric == "manhattan":
        e = 2 * bits[..., 0, :] + bits[..., 1, :]  # (B, H, L, 64 P)
        w = np.ones_like(e)
    else:
        e = 3 * bits[..., 0, :]
        w = np.zeros_like(e)
        for plane in range(1, width // P):
            w = 2 * w + bits[..., plane, :]

    distances = np.full((B, H, L, S), INVISIBLE, np.uint16)
    seen = visible_tokens(length, L)
    for b, h, l in np.ndindex(B, H, L):
        n = seen[b, l]
        keys = c[b, h // (H // H_kv), :n]  # (n, 64 P)
        distances[b, h, l, :n] = (w[b, h, l] * np.abs(keys - e[b, h, l])).sum(axis=-1)
    return distances
