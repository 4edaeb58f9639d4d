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


def value_bytes(head_dim: int) -> float:
    """Bytes of a value's code and its scale, per token and KV head."""
    return code_bytes(head_dim) + 1


def tail_bytes(head_dim: int, budget: int, coded: int) -> float:
    """Bytes per query head and step that a tail reads beside rows and 2-bit keys.

    The codes and scales of the values of `coded` tokens, and the third bits of the keys of these
    and of the `budget` tokens, because they choose which of both a token is.
    """
    return coded * value_bytes(head_dim) + (budget + coded) * extra_key_bytes(head_dim)


def extra_key_bytes(head_dim: int) -> float:
    """Bytes per token and KV head of the third bits of a key and their scale.

    A tail keeps them for every token, and reads them for its candidates.
    """
    return 8 * words(head_dim) + 1
