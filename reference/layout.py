"""Sizes and records that every backend shares, the specification."""

from __future__ import annotations

from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

TILE = 64  # tokens per tile; a tile is also a page of a paged cache
INVISIBLE = 65535  # the distance of a token that a query does not see; true distances are smaller
MAX_HEAD_DIM = 2048  # 3 * 7 * 2048 = 43008, the largest distance of 4-bit queries, is < INVISIBLE

# The options of a selection. Their class, which checks them, is adamas_core.selection.Selection.
# It lives on the floor above, and the functions here only read its fields.
Selection: TypeAlias = Any

# How inner products become weights. The class is adamas_core.softmax.Softmax.
Softmax: TypeAlias = Any


class Centers(NamedTuple):
    """The arrays that centered codes need in addition to their planes."""

    means: NDArray[np.float16]  # (B, H_kv, T, Dt): the codes of a tile are relative to its mean
    scales: NDArray[np.uint8]  # (B, H_kv, T, 64): one per token, see center.scale_of
    open_tile: NDArray[np.float32]  # (B, H_kv, 64, Dt): transformed keys of the tile in progress


class Fine(NamedTuple):
    """A third bit per coordinate of centered codes, which is read for the tail's tokens alone.

    The words of a token lie side by side, because no search goes through them.
    """

    bits: NDArray[np.uint64]  # (B, H_kv, T, 64, P)
    scales: NDArray[np.uint8]  # (B, H_kv, T, 64): of the codes of three bits, see center.scale_of


class Codes(NamedTuple):
    """All that a backend reads of coded keys."""

    planes: NDArray[np.uint64]  # (2, B, H_kv, T, 8, P, 8): high plane, low plane
    length: int | NDArray[np.integer]  # tokens, of all sequences or of each (B,); on the host
    thresholds: NDArray[np.float32]  # (H_kv, 3)
    centers: Centers | None = None  # None: the codes are not centered
    fine: Fine | None = None  # None: two bits per coordinate, with which there is no tail


class Values(NamedTuple):
    """All that a backend reads of coded values, beside the values themselves.

    They are as many as the coded keys. D_v is their head_dim, and P_v = words(D_v). Codes are read
    one token at a time, so in memory the words of a token lie side by side.
    """

    codes: NDArray[np.uint64]  # (B, H_kv, T, 64, 2, P_v): words of the high plane, then of the low
    scales: NDArray[np.uint8]  # (B, H_kv, T, 64): one per token, see center.scale_of
    bases: NDArray[np.float32]  # (B, H_kv, 2, D_v): see values.bases_of
    total: NDArray[np.float32]  # (B, H_kv, D_v): the sum of each sequence's values


def padded(head_dim: int) -> int:
    """Dt: head_dim, rounded up to a power of two."""
    return 1 << (head_dim - 1).bit_length()


def words(head_dim: int) -> int:
    """P: 64-bit words per token in one bit plane."""
    return -(-padded(head_dim) // 64)


def tiles(tokens: int) -> int:
    """T: tiles that hold `tokens` tokens."""
    return -(-tokens // TILE)
