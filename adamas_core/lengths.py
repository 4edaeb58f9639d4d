"""How many tokens each sequence of a batch has: one rule for codes and caches."""

from __future__ import annotations

from typing import Any

import numpy as np

NDArray = np.ndarray[Any, Any]


class Lengths:
    """Tokens per sequence. An object never changes, so that two holders can share it.

    Attributes
    ----------
    each : array (B,)
    ragged : bool
        Whether a caller gave each sequence its own length.
    longest, shortest : int
        0 where there is no sequence.
    """

    def __init__(self, each: NDArray, ragged: bool) -> None:
        self.each = each.astype(int)
        self.ragged = ragged
        self.longest = int(self.each.max(initial=0))
        self.shortest = int(self.each.min(initial=self.longest))

    @classmethod
    def of(cls, length: int | NDArray, B: int) -> Lengths:
        """Lengths of B sequences, from one number or an array (B,)."""
        return cls(np.broadcast_to(length, (B,)), np.ndim(length) == 1)

    def given(self) -> int | NDArray:
        """The lengths as callers give them: an int, or a copy (B,) where they are ragged."""
        return self.each.copy() if self.ragged else self.longest

    def plus(self, added: int | NDArray) -> Lengths:
        """Lengths after an append: of one number of tokens, or of a number per sequence (B,)."""
        return Lengths(self.each + added, self.ragged or np.ndim(added) == 1)

    def cut(self, tokens: int) -> Lengths:
        """Lengths of at most `tokens` tokens."""
        return Lengths(np.minimum(self.each, tokens), self.ragged)
