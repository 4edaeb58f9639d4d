"""The sizes of a decoder."""

from __future__ import annotations

import math
from dataclasses import dataclass

from .rope import Rope
from .settings import MAX_SIZE

_COUNTS = ("layers", "hidden", "ffn", "heads", "kv_heads", "head_dim", "vocab", "context")
ACTIVATIONS = ("silu", "gelu")


@dataclass(frozen=True)
class Config:
    """The sizes of a decoder, the angles of its positions, and the windows of its layers.

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
    ropes : tuple of Rope
        One per layer: the angles of its D / 2 pairs.
    windows : tuple of int or None
        One per layer: how many of the last tokens a query sees, itself included. None is all.
    activation : {"silu", "gelu"}
        The function of the feed-forward network's gate. GELU is its approximation by tanh.
    embedding_scale : float
        Factor of the embeddings.
    query_scale : float
        Factor of the queries, beside the D ** -0.5 that attention applies.

    Raises
    ------
    ValueError
        A size is less than 1 or above 2^31 - 1, D is odd, H is not a multiple of H_kv, another
        number is not finite, or there is not one rope and one window of at least 1 per layer.
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
    ropes: tuple[Rope, ...]  # (layers,)
    windows: tuple[int | None, ...]  # (layers,)
    activation: str = "silu"
    embedding_scale: float = 1.0
    query_scale: float = 1.0

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
        for name in ("embedding_scale", "query_scale"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(
                    f"{name} is {getattr(self, name)}, expected a finite number above 0"
                )
        if self.activation not in ACTIVATIONS:
            raise ValueError(f"activation is {self.activation!r}, expected silu or gelu")
        self._check_layers()

    def _check_layers(self) -> None:
        for name in ("ropes", "windows"):
            if len(getattr(self, name)) != self.layers:
                raise ValueError(
                    f"{name} has {len(getattr(self, name))} items, expected one per layer, "
                    f"{self.layers}"
                )
        for window in set(self.windows):
            if window is not None and not 1 <= window <= MAX_SIZE:
                raise ValueError(f"a window is {window}, expected 1 to {MAX_SIZE}")
        # By identity: layers share an object, and the hash of one reads all its frequencies.
        for rope in {id(rope): rope for rope in self.ropes}.values():
            if len(rope.frequencies) != self.head_dim // 2:
                raise ValueError(
                    f"RoPE has {len(rope.frequencies)} frequencies, expected {self.head_dim // 2}"
                )
            if not all(map(math.isfinite, (*rope.frequencies, rope.gain))):
                raise ValueError("RoPE's frequencies or its gain are not finite")
