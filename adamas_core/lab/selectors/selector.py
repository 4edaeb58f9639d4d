"""The interface of all selectors."""

from __future__ import annotations

from typing import Protocol

from .largest import Array, Indices


class Selector(Protocol):
    """Chooses tokens for queries.

    A selector sees queries and keys after RoPE, in float32. It is a frozen dataclass of options.
    """

    @property
    def name(self) -> str:
        """The name that tables print."""

    def fit(self, q: Array, k: Array) -> Selector:
        """Learn from a prefix: return a selector that holds its calibration or its state.

        Parameters
        ----------
        q : array (H, S0, D), float32
        k : array (H_kv, S0, D), float32
        """

    def __call__(self, q: Array, k: Array, budget: int) -> Indices:
        """Choose `budget` tokens for each query.

        Each query sees the tokens up to itself. A block of L queries gives the same tokens as L
        single steps.

        Parameters
        ----------
        q : array (H, L, D), float32
            The queries of the last L of the S tokens.
        k : array (H_kv, S, D), float32
        budget : int
            Tokens per query, at least 1.

        Returns
        -------
        array (H, L, K), int32
            K = min(budget, S), except for `Full`, which takes all S. Ascending; -1 after the last
            one where fewer than K tokens are visible or chosen.
        """

    def bytes_kept(self, D: int) -> float:
        """Bytes per token and KV head that are kept in addition to K and V in float16."""

    def bytes_read(self, D: int, S: int, budget: int) -> float:
        """Bytes per KV head and step that are read to choose, without the chosen rows of K, V."""
