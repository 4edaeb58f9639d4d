"""Bytes that the library's codes take per token."""

from __future__ import annotations

from ..reference.layout import TILE, padded, words


def code_bytes(head_dim: int, centered: bool = False) -> float:
    """Bytes of codes per token and KV head, as `KeyCodes.nbytes` counts them for full tiles.

    Two planes of 64-bit words. Centered codes add a scale byte per token and a float16 mean per
    tile. Not counted: the float32 keys of the tile that is not full yet, 256 Dt bytes per sequence
    and KV head at any length.
    """
    planes = 2 * 8 * words(head_dim)
    return planes + 1 + 2 * padded(head_dim) / TILE if centered else planes
