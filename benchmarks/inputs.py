"""Keys, values and queries to decode with, in a `KVCache` that takes no second copy of them."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from adamas_core import KVCache
from harness import memory_available

CHUNK = 1 << 16  # tokens made at a time
TOPIC = 256  # tokens in a row about the same, where keys are structured
LEAVE_BYTES = 2 << 30  # of memory to the rest of the machine


class TooLarge(Exception):
    """There is no room for a setting, and how much it takes."""


def dtype_of(name: str) -> np.dtype[Any]:
    if name != "bfloat16":
        return np.dtype(name)
    import ml_dtypes

    return np.dtype(ml_dtypes.bfloat16)


def make(
    kind: str, dtype: str, B: int, H: int, H_kv: int, S: int, D: int, most_bytes: int
) -> tuple[NDArray[Any], KVCache]:
    """Queries (B, H, 1, D) and a cache of S tokens.

    "random": all normal, so that the heads of a group choose different tokens. "structured": keys
    in runs of related tokens with four strong channels, and queries near keys of the cache that the
    heads of a group share.
    """
    size = dtype_of(dtype)
    nbytes = B * H_kv * S * (2 * D * size.itemsize + D // 4)
    room = min(most_bytes, memory_available() - LEAVE_BYTES)
    if nbytes > room:
        raise TooLarge(f"{nbytes / 1e9:.1f} GB of cache, {room / 1e9:.1f} GB to be had")
    rng = np.random.default_rng(0)
    cache = KVCache(capacity=S)
    shape = (B, H_kv, min(S, CHUNK), D)
    # Values say nothing about speed: one chunk of them serves all.
    v = rng.standard_normal(shape, dtype=np.float32).astype(size)
    for start in range(0, S, CHUNK):
        n = min(CHUNK, S - start)
        k = rng.standard_normal((B, H_kv, n, D), dtype=np.float32)
        if kind == "structured":
            topics = rng.standard_normal((B, H_kv, -(-n // TOPIC), D), dtype=np.float32)
            k += topics.repeat(TOPIC, axis=2)[:, :, :n]
            k[..., :4] *= 4
        cache.append(k.astype(size), v[:, :, :n])
    q = rng.standard_normal((B, H, 1, D), dtype=np.float32)
    if kind == "structured":
        near = cache[0].k[:, :, rng.integers(S)].astype(np.float32)  # (B, H_kv, D)
        q = near.repeat(H // H_kv, axis=1)[:, :, None] + 0.5 * q
    return q.astype(size), cache
