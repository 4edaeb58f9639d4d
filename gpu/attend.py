"""Softmax attention over chosen tokens."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from . import _launch
from ._kernels import ATTEND
from ._launch import Array
from ._rows import element, leading_strides, loaded_at_once, padded

THREADS = 128
BLOCKS = 4  # a multiprocessor; more splits than fill them so do not pay
LEAST = 32  # tokens a split; fewer do not pay for the merge


class Splits(NamedTuple):
    """Where the blocks that share a row leave their sums."""

    partial: Array  # (rows, splits, D + 2), float32
    finished: Array  # (rows,), uint32, 0 between launches
    number: int


def no_splits(rows: int, tokens: int, D: int) -> Splits:
    """As many splits of each row's tokens as fill the chip."""
    xp = _launch.device().xp
    fill = -(-BLOCKS * _launch.multiprocessors() // rows)
    number = max(min(fill, tokens // LEAST), 1)
    partial = xp.empty((rows, number if number > 1 else 0, D + 2), np.float32)
    return Splits(partial, xp.zeros((rows,), np.uint32), number)


def attend_into(
    q: Array,
    k: Array,
    v: Array,
    indices: Array | None,
    lengths: Array | None,
    scale: float | None,
    out: Array,
    lse: Array,
    splits: Splits,
    beyond: Array | None = None,
) -> None:
    """Attention into out (B, H, L, D) and lse (B, H, L); nothing is allocated.

    q has k's dtype or float32, and out has q's. Without indices the queries are the last L of
    lengths (B,) tokens, or of all S. An index of S or above is left out, and beyond (1,), uint32,
    becomes one more than the largest such.
    """
    B, H, L, D = q.shape
    H_kv, S = k.shape[1:3]
    DT = max(padded(D), 32)
    vector = loaded_at_once(k, v) if q.dtype == k.dtype and DT <= 256 else 1
    _launch.device().launch(
        ATTEND,
        (element(q), element(k), DT, vector),
        (B * H * L, splits.number),
        THREADS,
        (
            *(q, *leading_strides(q), k, *leading_strides(k), v, *leading_strides(v)),
            *(indices, lengths, H, H_kv, L, S, 0 if indices is None else indices.shape[-1], D),
            D**-0.5 if scale is None else float(scale),
            *(out, lse, splits.partial, splits.finished, beyond),
        ),
    )


def attend(
    q: Array,
    k: Array,
    v: Array,
    indices: Array | None,
    scale: float | None = None,
    return_lse: bool = False,
) -> Array | tuple[Array, Array]:
    """Attention of q (B, H, L, D) over the rows `indices` (B, H, L, K) of k, v (B, H_kv, S, D).

    It waits for the check that every index is below S. While a CUDA graph is being captured it
    cannot wait, and an index of S or above is left out without a word.
    """
    xp = _launch.device().xp
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
        splits = no_splits(B * H * L, S if indices is None else indices.shape[-1], D)
        attend_into(wide, k, v, indices, None, scale, out, lse, splits, beyond)
        if beyond is not None and not _launch.capturing() and int(beyond[0]):
            raise IndexError(f"index {int(beyond[0]) - 1} is out of range: k and v hold {S} tokens")
    out = out.astype(q.dtype, copy=False)
    return (out, lse) if return_lse else out
