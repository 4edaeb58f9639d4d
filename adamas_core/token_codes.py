"""What codes of keys and codes of values have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, Protocol

import numpy as np

from . import checks
from .dispatch import Array, int_or_view, int_or_view_or_row, views
from .lengths import Lengths

NDArray = np.ndarray[Any, Any]


class Held(Protocol):
    """A state of `code_store` or `value_store`."""

    @property
    def lengths(self) -> Lengths: ...

    @property
    def backend(self) -> str: ...

    def shape(self) -> tuple[int, int, int, int]: ...

    def device(self) -> str: ...

    def nbytes(self) -> int: ...


class TokenCodes(ABC):
    """Codes of one row per token, in one attention layer.

    `name` is that of the class in errors, and `rows` that of the argument with the rows.
    """

    __slots__ = ()

    name: ClassVar[str]
    rows: ClassVar[str]

    @abstractmethod
    def _coded(self) -> Held:
        """The codes, after the repair of an operation that did not end."""

    @property
    def head_dim(self) -> int:
        """D."""
        return self._coded().shape()[3]

    @property
    def backend(self) -> str:
        """The backend that reads the codes."""
        return self._coded().backend

    @property
    def length(self) -> int | NDArray:
        """Tokens: an int, or (B,) where the sequences were given lengths of their own."""
        return self._coded().lengths.given()

    @property
    def tokens(self) -> int:
        """The largest length."""
        return self._coded().lengths.longest

    @property
    def device(self) -> str:
        """The device of the codes."""
        return self._coded().device()

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(B, H_kv, tokens, D)."""
        return self._coded().shape()

    @property
    def nbytes(self) -> int:
        """Bytes in use, without free slots."""
        return self._coded().nbytes()

    def _given(self, where: str, x: Array, tokens: int = 0) -> Any:
        """Rows as a view (B, H_kv, S, D) that fits the codes and has at least `tokens` tokens."""
        (a,) = views(**{self.rows: x})
        checks.floats(where, self.rows, a, (3, 4))
        given, a = a, a[None] if a.ndim == 3 else a
        B, H_kv, _, D = self.shape
        if a.shape[:2] != (B, H_kv) or a.shape[2] < tokens or a.shape[3] != D:
            least = f" with at least {tokens} tokens" if tokens else ""
            raise ValueError(
                f"{where}: {checks.shown(self.rows, given)}; expected ({B}, {H_kv}, S, {D}){least}"
            )
        checks.lies_on(where, self.rows, a, self.device)
        return a

    def _new(self, x: Array, count: int | Array | None) -> tuple[Any, int | NDArray, Lengths]:
        """Rows of new tokens, how many each sequence gets, and the lengths after them; checked."""
        where = f"{self.name}.append"
        a = self._given(where, x)
        B, S = a.shape[0], a.shape[2]
        added = S if count is None else int_or_view("count", count)
        added = checks.length(where, "count", added, B, S, self.rows)
        old = self._coded().lengths
        checks.tokens(where, old.longest + S)
        return a, added, old.plus(added)

    def _left(self, tokens: int | Sequence[int] | Array) -> Lengths:
        """The lengths after a cut to `tokens` tokens, checked."""
        each = self._coded().lengths.each
        kept = checks.cut(f"{self.name}.truncate", int_or_view_or_row("tokens", tokens), each)
        return self._coded().lengths.cut(kept)
