"""Softmax attention over chosen tokens."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from adamas_core.reference.layout import Softmax, padded

from . import _launch
from ._arrays import element, elements_per_load, strides
from ._kernels import ATTEND
from ._launch import Array
from ._softmax import plain_scale

THREADS = 128
BLOCKS = 4  # per multiprocessor; splits that make more blocks are not faster
MIN_SPLIT = 32  # tokens per split; a smaller split takes less time than its merge


class Splits(NamedTuple):
    """Memory for the sums of several blocks that share a row."""

    partial: Array  # (rows, splits, D + 2), float32
    finished: Array  # (rows,), uint32, 0 between launches
    number: int


def empty_splits(rows: int, tokens: int, D: int) -> Splits:
    """As many splits of each row's tokens as fill the device."""
    device = _launch.device()
    xp = device.xp
    fill = -(-BLOCKS * device.multiprocessors() // rows)
    number = max(min(fill, tokens // MIN_SPLIT), 1)
    partial = xp.empty((rows, number if number > 1 else 0, D + 2), np.float32)
    return Splits(partial, xp.zeros((rows,), np.uint32), number)


def attend_into(
    q: Array,
    k: Array,
    v: Array,
    indices: Array | None,
    softmax: Softmax | None,
    out: Array,
    lse: Array,
    splits: Splits,
    beyond: Array | None = None,
    window: int | None = None,
) -> None:
    """Attention into out (B, H, L, D) and lse (B, H, L). Nothing is allocated.

    q has the dtype of k or float32, and out has that of q. Without indices the queries are the last
    L of S tokens, and each sees the last `window` tokens up to itself, or all. An index of S or
    more is ignored; the largest such index plus 1 goes to beyond (1,), uint32.
    """
    B, H, L, D = q.shape
    H_kv, S = k.shape[1:3]
    DT = max(padded(D), 32)
    vector = elements_per_load(k, v) if q.dtype == k.dtype and DT <= 256 else 1
    sizes = {"H": H, "H_kv": H_kv, "L": L, "S": S, "D": D}
    _launch.device().launch(
        ATTEND,
        (element(q), element(k), DT, vector),
        (B * H * L, splits.number),
        THREADS,
        {
            **strides("q", q),
            **strides("k", k),
            **strides("v", v),
            **sizes,
            "indices": indices,
            "window": S if window is None else min(window, S),
            "K": -1 if indices is None else indices.shape[-1],
            "scale": plain_scale(softmax, k, v),
            "out": out,
            "lse": lse,
            "partial": splits.partial,
            "finished": splits.finished,
            "beyond": beyond,
        },
    )


def attend(
    q: Array,
    k: Array,
    v: Array,
    indices: Array | None,
    softmax: Softmax | None = None,
    return_lse: bool = False,
    window: int | None = None,
) -> Array | tuple[Array, Array]:
    """Attention of q (B, H, L, D) over the rows `indices` (B, H, L, K) of k, v (B, H_kv, S, D).

    Without indices each query sees the last `window` tokens up to itself, or all of them. It waits
    for the device, to check that every index is below S. While a CUDA graph is captured it cannot
    wait, and an index of S or more is ignored.
    """
    device = _launch.device()
    xp = device.xp
    B, H, L, D = q.shape
    S = k.shape[2]
    wide = q if q.dtype == k.dtype else xp.asarray(q, np.float32)
    out = xp.empty(q.shape, wide.dtype)
    lse = xp.empty((B, H, L), np.float32)
    if out.size:
        beyond = None
        if indices is not None:
            indices = xp.ascontiguousarray(indices)
            beyond = xp.zeros((1,), np.uint32)
        seen = S if window is None else min(window, S)
        splits = empty_splits(B * H * L, seen if indices is None else indices.shape[-1], D)
        attend_into(wide, k, v, indices, softmax, out, lse, splits, beyond, window)
        if beyond is not None and not device.capturing() and int(beyond[0]):
            raise IndexError(f"index {int(beyond[0]) - 1} is out of range: k and v hold {S} tokens")
    out = out.astype(q.dtype, copy=False)
    return (out, lse) if return_lse else out
