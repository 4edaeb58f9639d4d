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

    __slots__ = ("each", "longest", "ragged", "shortest")

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
        if not self.ragged and isinstance(added, int) and len(self.each):  # as each decode step
            grown = Lengths.__new__(Lengths)
            grown.each = self.each + added
            grown.ragged = False
            grown.longest = grown.shortest = self.longest + added
            return grown
        return Lengths(self.each + added, self.ragged or np.ndim(added) == 1)

    def cut(self, tokens: int | NDArray) -> Lengths:
        """Lengths of at most `tokens` tokens: one number, or a number per sequence (B,)."""
        return Lengths(np.minimum(self.each, tokens), self.ragged or np.ndim(tokens) == 1)

    def take(self, order: NDArray) -> Lengths:
        """Lengths of the sequences `order`; -1 is a sequence without tokens."""
        each = taken(self.each, order)
        return Lengths(each, self.ragged or bool((order < 0).any()))


def taken(counts: NDArray, order: NDArray) -> NDArray:
    """The counts (B,) of the sequences `order`, and 0 where order is -1."""
    kept: NDArray = np.where(order < 0, 0, counts[order] if len(counts) else 0)
    return kept
