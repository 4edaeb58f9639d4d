"""The sizes of a decoder."""

from __future__ import annotations

import math
from dataclasses import dataclass

from .settings import MAX_SIZE

_COUNTS = ("layers", "hidden", "ffn", "heads", "kv_heads", "head_dim", "vocab", "context")


@dataclass(frozen=True)
class Config:
    """The sizes of a decoder, and the angles of its positions.

    Attributes
    ----------
    layers : int
    hidden : int
        Length E of the vector that each layer reads and changes.
    ffn : int
        Length F of the feed-forward network's inner vector.
    heads, kv_heads : int
        Query heads H and key/value heads H_kv. H is a multiple of H_kv.
    head_dim : int
        Length D of one head. It is even, because RoPE rotates pairs.
    vocab : int
        Number V of token ids.
    context : int
        Number of positions that the model was trained for.
    norm_eps : float
        Added to the mean square in each RMS norm.
    frequencies : tuple of float
        One angle for each of the D / 2 pairs, in radians per position.
    rope_gain : float
        Factor of the rotated queries and keys. It is 1 except for yarn.

    Raises
    ------
    ValueError
        A size is less than 1 or above 2^31 - 1, D is odd, H is not a multiple of H_kv, or another
        number is not finite.
    """

    layers: int
    hidden: int  # E
    ffn: int  # F
    heads: int  # H
    kv_heads: int  # H_kv
    head_dim: int  # D
    vocab: int  # V
    context: int
    norm_eps: float
    frequencies: tuple[float, ...]  # (D / 2,)
    rope_gain: float = 1.0

    def __post_init__(self) -> None:
        for name in _COUNTS:
            if not 1 <= getattr(self, name) <= MAX_SIZE:
                raise ValueError(f"{name} is {getattr(self, name)}, expected 1 to {MAX_SIZE}")
        if self.head_dim % 2:
            raise ValueError(f"head_dim is {self.head_dim}, expected even: RoPE rotates pairs")
        if self.heads % self.kv_heads:
            raise ValueError(f"{self.heads} query heads cannot share {self.kv_heads} KV heads")
        if not 0 <= self.norm_eps < math.inf:
            raise ValueError(f"norm_eps is {self.norm_eps}, expected a finite number from 0 on")
        if not all(map(math.isfinite, (*self.frequencies, self.rope_gain))):
            raise ValueError("RoPE's frequencies or its gain are not finite")
