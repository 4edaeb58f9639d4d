"""Codes of keys and queries, and their packed layouts, the specification."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .hadamard import hadamard
from .layout import TILE, tiles


def pack_bits(bits: NDArray[np.bool_]) -> NDArray[np.uint64]:
    """Pack (..., Dt) into (..., P) words: coordinate i is bit i % 64 of word i // 64."""
    P = -(-bits.shape[-1] // 64)
    padded = np.zeros((*bits.shape[:-1], 64 * P), np.bool_)
    padded[..., : bits.shape[-1]] = bits
    octets = np.packbits(padded, axis=-1, bitorder="little")
    return octets.view("<u8").astype(np.uint64)


def unpack_bits(words: NDArray[np.uint64]) -> NDArray[np.uint8]:
    """Undo pack_bits: words (..., P) into zeros and ones (..., 64 P)."""
    octets = np.ascontiguousarray(words).astype("<u8").view(np.uint8)
    return np.unpackbits(octets, axis=-1, bitorder="little")


def quantize(x: NDArray[np.float32], thresholds: NDArray[np.float32]) -> NDArray[np.uint64]:
    """Packed 2-bit codes of transformed x (..., Dt): rows (..., 2P).

    A code is the number of thresholds below x, from 0 to 3. NaN is above no threshold and gets 0.
    thresholds are (3,), or (heads, 3) for x (..., heads, tokens, Dt). A row holds the P words of
    the high bits, then the P words of the low bits.
    """
    t = np.asarray(thresholds, np.float32)
    t = t[..., None, None, :]  # (1, 1, 3) or (heads, 1, 1, 3), against (..., heads, tokens, Dt, 1)
    code = (t < x[..., None]).sum(axis=-1).reshape(x.shape)
    return np.concatenate([pack_bits(code >= 2), pack_bits(code % 2 == 1)], axis=-1)


def quantize_query(x: NDArray[np.float32], bits: int = 4) -> NDArray[np.uint64]:
    """Bit planes (..., bits * P) of transformed queries x (..., Dt), for the weighted metric.

    The sign plane comes first, 1 where x > 0. The planes of the weights follow, most significant
    first: w = rint(|x| / m * wmax), where m is the largest |x| of the row, NaN left out, and
    wmax = 2 ** (bits - 1) - 1. The quotient, the product and the rounding (half to even) are
    each float32. Where the quotient is NaN (0 / 0, inf / inf, NaN) the weight is 0.
    """
    size = np.abs(x)
    wmax = np.float32(2 ** (bits - 1) - 1)
    with np.errstate(divide="ignore", invalid="ignore"):
        share = size / np.fmax.reduce(size, axis=-1, keepdims=True, initial=0)
    w = np.where(np.isnan(share), 0, np.rint(share * wmax)).astype(np.uint8)
    planes = [x > 0] + [(w >> b) & 1 == 1 for b in reversed(range(bits - 1))]
    return np.concatenate([pack_bits(p) for p in planes], axis=-1)


def to_planes(codes: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Rows of codes (..., S, 2P) into key planes (2, ..., T, 8, P, 8); slots after S are 0."""
    *lead, S, width = codes.shape
    P, T = width // 2, tiles(S)
    rows = np.zeros((2, *lead, T * TILE, P), np.uint64)
    rows[0, ..., :S, :] = codes[..., :P]
    rows[1, ..., :S, :] = codes[..., P:]
    groups = rows.reshape(2, *lead, T, 8, 8, P)  # tile, group, token in the group, word
    return np.ascontiguousarray(groups.swapaxes(-1, -2))


def from_planes(planes: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Undo to_planes: (2, ..., T, 8, P, 8) into rows of codes (..., 64 T, 2P)."""
    *lead, T, _, P, _ = planes.shape
    rows = planes.swapaxes(-1, -2).reshape(*lead, T * TILE, P)
    return np.concatenate([rows[0], rows[1]], axis=-1)


def encode(
    k: NDArray[Any],
    thresholds: NDArray[np.float32],
    planes: NDArray[np.uint64] | None = None,
    start: int | NDArray[np.integer] = 0,
) -> NDArray[np.uint64]:
    """Key planes (2, B, H_kv, T, 8, P, 8) of the keys k (B, H_kv, S, D): transform, codes, tiles.

    With `planes`, the keys become its tokens start, start + 1, ..., in place, and it is returned.
    start is an int or (B,), and planes must have room. No other slot is written.
    """
    codes = quantize(hadamard(k), thresholds)  # (B, H_kv, S, 2P)
    if planes is None:
        return to_planes(codes)
    B, _, S, width = codes.shape
    P = width // 2
    for b, first in enumerate(np.broadcast_to(start, (B,))):
        for s in range(S):
            tile, slot = divmod(int(first) + s, TILE)
            group, lane = divmod(slot, 8)
            planes[0, b, :, tile, group, :, lane] = codes[b, :, s, :P]
            planes[1, b, :, tile, group, :, lane] = codes[b, :, s, P:]
    return planes
