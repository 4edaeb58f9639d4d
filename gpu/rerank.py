"""Ranking selected tokens again, by their exact inner products."""

from __future__ import annotations

import numpy as np

from adamas_core.reference.layout import Selection

from . import _launch
from ._arrays import element, elements_per_load, strides
from ._kernels import RERANK
from ._launch import Array
from .topk import taken

THREADS = 512
# The most products that a block keeps in shared memory: 24 KB, beside up to 8 KB of the query.
SHARED_PRODUCTS = 6144
QUERY_MULTIPLE = 64  # coordinates that a team of threads loads at once; the query is padded to it


def rerank(q: Array, k: Array, indices: Array, budget: int, selection: Selection) -> Array:
    """Indices (B, H, L, budget) of the tokens with the largest q.k among `indices`, ascending.

    It waits for the device, to check that every index is below S. While a CUDA graph is captured it
    cannot wait, and an index of S or more is ignored.
    """
    device = _launch.device()
    beyond = device.xp.zeros((1,), np.uint32)
    best = rerank_below(q, k, indices, budget, selection, beyond)
    last, S = -1 if device.capturing() else int(beyond[0]) - 1, k.shape[2]
    if last >= S:
        raise IndexError(f"rerank: indices hold {last}; expected < {S}, the tokens of k")
    return best


def rerank_below(
    q: Array,
    k: Array,
    indices: Array,
    budget: int,
    selection: Selection,
    beyond: Array | None = None,
) -> Array:
    """Do `rerank` of indices below S. Nothing waits for the device.

    The largest index of S or more plus 1 goes to beyond (1,), uint32.
    """
    xp = _launch.device().xp
    B, H, L, D = q.shape
    H_kv, S = k.shape[1:3]
    M, rows = indices.shape[-1], B * H * L
    best = xp.empty((B, H, L, budget), np.int32)
    if best.size:
        wide = q if q.dtype == k.dtype else xp.asarray(q, np.float32)
        in_shared = M if M <= SHARED_PRODUCTS else 0
        width = -(-D // QUERY_MULTIPLE) * QUERY_MULTIPLE
        sizes = {"H": H, "H_kv": H_kv, "L": L, "S": S, "M": M, "D": D, "width": width}
        _launch.device().launch(
            RERANK,
            (element(wide), element(k), elements_per_load(k)),
            (rows,),
            THREADS,
            {
                **strides("q", wide),
                **strides("k", k),
                "candidates": xp.ascontiguousarray(indices),
                **sizes,
                "workspace": xp.empty((rows, M - in_shared), np.uint32),
                "in_shared": in_shared,
                **taken(budget, selection),
                "beyond": beyond,
                "out": best,
            },
            shared=4 * (width + in_shared),
        )
    return best
