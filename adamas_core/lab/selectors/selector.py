"""The interfaces of all that is compared: selectors of tokens, and forms of attention.

All see queries and keys after RoPE, in float32. All are frozen dataclasses of options.
"""

from __future__ import annotations

from typing import Any, Protocol, TypeAlias, runtime_checkable

from numpy.typing import NDArray

from ...ops import attend
from .largest import Array, Indices


class Selector(Protocol):
    """Chooses tokens for queries, which then attend to these tokens alone."""

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


@runtime_checkable
class Form(Protocol):
    """Attends in its own way, to more than a choice of tokens."""

    @property
    def name(self) -> str:
        """The name that tables print."""

    def fit(self, q: Array, k: Array) -> Form:
        """As `Selector.fit`."""

    def attend(self, q: Array, k: Array, v: Array, budget: int) -> NDArray[Any]:
        """The attention of each query.

        Each query sees the tokens up to itself. A block of L queries gives the same output as L
        single steps.

        Parameters
        ----------
        q : array (H, L, D), float32
            The queries of the last L of the S tokens.
        k, v : array (H_kv, S, D), float32
        budget : int
            Tokens per query whose keys and values are read as they are, at least 1.

        Returns
        -------
        array (H, L, D), float32
        """

    def bytes_kept(self, D: int) -> float:
        """Bytes per token and KV head that are kept in addition to K and V in float16."""

    def bytes_read(self, D: int, S: int, budget: int) -> float:
        """Bytes per KV head and step that are read once for all query heads of the group."""

    def bytes_of_rows(self, D: int, S: int, budget: int) -> float:
        """Bytes per query head and step: of chosen rows of K and V, and of other rows."""


Method: TypeAlias = Selector | Form


def attended(method: Method, q: Array, k: Array, v: Array, budget: int) -> NDArray[Any]:
    """The attention (H, L, D) of a form, or of the tokens that a selector chooses."""
    if isinstance(method, Form):
        return method.attend(q, k, v, budget)
    out: NDArray[Any] = attend(q, k, v, method(q, k, budget))
    return out


def bytes_of_rows(method: Method, D: int, S: int, budget: int) -> float:
    """Bytes per query head and step: of the rows of K and V in float16, and of a form's others."""
    if isinstance(method, Form):
        return method.bytes_of_rows(D, S, budget)
    return float(2 * 2 * D * min(budget, S))
