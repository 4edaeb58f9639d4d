"""The tail of this library: no token is dropped, see `adamas_core.attend_tail`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from ... import checks
from ...cache import KVCache
from ...selection import Selection
from ..code_bytes import code_bytes, extra_key_bytes, tail_bytes, value_bytes
from .largest import Array, checked


@dataclass(frozen=True)
class AdamasTail:
    """The budget as it is, the next `tail` tokens by codes, and the rest by a mean.

    A `KVCache` attends: the tokens before the block are coded once, and each query sees the codes
    of its own step.
    """

    tail: int

    def __post_init__(self) -> None:
        checks.at_least("AdamasTail", "tail", self.tail, 1)

    @property
    def name(self) -> str:
        return f"tail of {self.tail}"

    def fit(self, q: Array, k: Array) -> AdamasTail:
        return self

    def attend(self, q: Array, k: Array, v: Array, budget: int) -> NDArray[Any]:
        K = checked(self.name, q, k, budget)
        S = k.shape[1]
        first = S - q.shape[1]
        cache = KVCache(selection=Selection(tail=self.tail), capacity=S)
        if first:
            cache.append(k[:, :first], v[:, :first])
        out: NDArray[Any] = cache.attention(K)(0, q, k[:, first:], v[:, first:])
        return out

    def bytes_kept(self, D: int) -> float:
        """The codes of keys and of values."""
        return code_bytes(D, centered=True) + extra_key_bytes(D) + value_bytes(D)

    def bytes_read(self, D: int, S: int, budget: int) -> float:
        """The codes of all keys, in two bits."""
        return S * code_bytes(D, centered=True)

    def bytes_of_rows(self, D: int, S: int, budget: int) -> float:
        """The rows of K and V of the budget, and the codes of the coded tokens."""
        K = min(budget, S)
        if K == S:
            return 2 * 2 * D * K
        return 2 * 2 * D * K + tail_bytes(D, K, min(self.tail, S - K))
