"""Queries, and a `KVCache` of keys and values that is built without a second copy of them."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from adamas_core import KVCache, Selection
from harness import memory_available

CHUNK = 1 << 16  # tokens made at a time
TOPIC = 256  # consecutive tokens with the same topic, in structured keys
LEAVE_BYTES = 2 << 30  # of memory, for the rest of the machine


class TooLarge(Exception):
    """A setting needs more memory than there is. The text says how much."""


def dtype_of(name: str) -> np.dtype[Any]:
    if name != "bfloat16":
        return np.dtype(name)
    import ml_dtypes

    return np.dtype(ml_dtypes.bfloat16)


def make(
    kind: str, dtype: str, B: int, H: int, H_kv: int, S: int, D: int, most_bytes: int
) -> tuple[NDArray[Any], KVCache]:
    """Queries (B, H, 1, D) and a cache of S tokens with plain codes, which serve every metric.

    "random": everything is normal, so the heads of a group choose different tokens. "structured":
    keys come in runs of related tokens and have four strong channels. The heads of a group have
    queries near the same key of the cache.
    """
    size = dtype_of(dtype)
    nbytes = B * H_kv * S * (2 * D * size.itemsize + D // 4)
    room = min(most_bytes, memory_available() - LEAVE_BYTES)
    if nbytes > room:
        raise TooLarge(f"the cache needs {nbytes / 1e9:.1f} GB; available: {room / 1e9:.1f} GB")
    rng = np.random.default_rng(0)
    cache = KVCache(centered=False, capacity=S)
    shape = (B, H_kv, min(S, CHUNK), D)
    # The numbers in the values do not change the speed, so all chunks have the same.
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


def with_selection(cache: KVCache, selection: Selection) -> KVCache:
    """The same keys, values and codes, searched with other options. Nothing is copied.

    A cache keeps the options that it was made with, and has no public way to share its arrays. One
    copy per selection would not fit into memory.
    """
    same = KVCache(selection=selection, centered=cache.centered)
    same._layers = cache._layers
    return same
