"""Codes of values and their sums: append, cut and take sequences, without damage on the way.

`CodedValues` never changes, as `Coded` in `code_store`, whose `Undo` guards its codes. The sums are
in arrays of their own after each operation, so they need no undo.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from . import code_store, value_sums
from .code_store import Coded, Guard, Kind, head_thresholds
from .lengths import Lengths
from .reference.center import CENTERED_THRESHOLDS
from .reference.layout import Values
from .value_sums import Sums

NDArray = np.ndarray[Any, Any]


# Values are read one token at a time, so the words of a token lie side by side.
KIND = Kind(centered=True, by_token=True)


class CodedValues(NamedTuple):
    """The values of one layer: centered codes and sums."""

    codes: Coded
    sums: Sums

    def record(self) -> Values:
        """The codes and the sums of all values, as backends read them."""
        centers = self.codes.used_centers()
        assert centers is not None
        return Values(self.codes.used(), centers, self.sums.total())

    def nbytes(self) -> int:
        """Bytes of the tiles in use, of the open tile and of the sums."""
        return self.codes.nbytes() + self.sums.nbytes()


def empty(B: int, H_kv: int, D: int, backend: str, capacity: int) -> CodedValues:
    """Codes of no value, with room for `capacity` tokens."""
    t = head_thresholds(CENTERED_THRESHOLDS, H_kv, backend)
    codes = code_store.empty(B, H_kv, D, t, backend, capacity, KIND)
    return CodedValues(codes, value_sums.empty(B, H_kv, D, backend))


def encoded(v: Any, lengths: Lengths, backend: str) -> CodedValues:
    """Codes and sums of checked values (B, H_kv, S, D)."""
    B, H_kv, S, D = v.shape
    state = empty(B, H_kv, D, backend, S)
    return append(state, v, lengths.given(), lengths, lambda undo: None)


def with_sums(codes: Coded, v: Any) -> CodedValues:
    """Codes that are there already, and the sums of their values v (B, H_kv, S, D)."""
    B, H_kv, _, D = v.shape
    none = value_sums.empty(B, H_kv, D, codes.backend)
    sums = value_sums.append(none, v, Lengths.of(0, B), codes.lengths, codes.backend)
    return CodedValues(codes, sums)


def append(
    state: CodedValues, v: Any, added: int | NDArray, lengths: Lengths, guard: Guard
) -> CodedValues:
    """Encode checked values (B, H_kv, S, D) after the others. `lengths` are those after it."""
    codes = code_store.append(state.codes, v, added, lengths, guard)
    sums = value_sums.append(state.sums, v, state.codes.lengths, lengths, codes.backend)
    return CodedValues(codes, sums)


def cut(state: CodedValues, lengths: Lengths, v: Any, guard: Guard) -> CodedValues:
    """Drop all tokens after `lengths`. v (B, H_kv, S, D) has the values that are left."""
    sums = value_sums.cut(state.sums, v, state.codes.lengths, lengths, state.codes.backend)
    return CodedValues(code_store.cut(state.codes, lengths, v, guard), sums)


def take(state: CodedValues, order: NDArray) -> CodedValues:
    """Values of the sequences `order` (B',), in arrays of their own; -1 is an empty sequence."""
    codes = code_store.take(state.codes, order)
    return CodedValues(codes, value_sums.take(state.sums, order, codes.lengths, codes.backend))
