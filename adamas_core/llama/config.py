"""The sizes of a decoder."""

from __future__ import annotations

from dataclasses import dataclass

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
        A size is less than 1, D is odd, or H is not a multiple of H_kv.
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
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, expected at least 1")
        if self.head_dim % 2:
            raise ValueError(f"head_dim is {self.head_dim}, expected even: RoPE rotates pairs")
        if self.heads % self.kv_heads:
            raise ValueError(f"{self.heads} query heads cannot share {self.kv_heads} KV heads")
