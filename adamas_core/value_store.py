"""Codes of values and their sums: append, cut and take sequences, without damage on the way.

`CodedValues` never changes, as `Coded` in `code_store`. A token's code is written once, into a free
slot. So an append needs no copies to be undone, and a cut only those of the tile that it ends in.
The sums are in arrays of their own after each operation. Free slots of codes and scales are 0.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import numpy as np

from . import checks, value_sums
from .code_store import Guard, Undo, grown, ranges, take_sequences
from .dispatch import array_module, load
from .lengths import Lengths
from .reference.layout import TILE, Values, tiles, words
from .value_sums import Sums

NDArray = np.ndarray[Any, Any]


class CodedValues(NamedTuple):
    """The values of one layer: codes and sums."""

    codes: Any  # (B, H_kv, T, 64, 2, P), with room for more tokens than there are
    scales: Any  # (B, H_kv, T, 64), with the same room
    sums: Sums
    lengths: Lengths
    backend: str

    def record(self) -> Values:
        """Codes, bases and the sums of all values, as backends read them."""
        codes, scales = self.used()
        return Values(codes, scales, self.sums.bases, self.sums.total())

    def used(self) -> tuple[Any, Any]:
        """Codes and scales of the tiles in use."""
        T = tiles(self.lengths.longest)
        return self.codes[:, :, :T], self.scales[:, :, :T]

    def shape(self) -> tuple[int, int, int, int]:
        """(B, H_kv, tokens, D) of the coded values."""
        B, H_kv, _, D = self.sums.bases.shape
        return B, H_kv, self.lengths.longest, D

    def device(self) -> str:
        """The device of the codes."""
        return checks.device(self.codes)

    def nbytes(self) -> int:
        """Bytes of the tiles in use, and of the sums."""
        return sum(int(x.nbytes) for x in self.used()) + self.sums.nbytes()


def empty(B: int, H_kv: int, D: int, backend: str, capacity: int) -> CodedValues:
    """Codes of no value, with room for `capacity` tokens."""
    xp, T = array_module(backend), tiles(capacity)
    codes = xp.zeros((B, H_kv, T, TILE, 2, words(D)), np.uint64)
    scales = xp.zeros((B, H_kv, T, TILE), np.uint8)
    sums = value_sums.empty(B, H_kv, D, backend)
    return CodedValues(codes, scales, sums, Lengths.of(0, B), backend)


def encoded(v: Any, lengths: Lengths, backend: str) -> CodedValues:
    """Codes and sums of checked values (B, H_kv, S, D)."""
    B, H_kv, S, D = v.shape
    state = empty(B, H_kv, D, backend, S)
    return append(state, v, lengths.given(), lengths, lambda undo: None)


def of_arrays(codes: Any, scales: Any, v: Any, lengths: Lengths, backend: str) -> CodedValues:
    """Codes and scales that are there already, and the sums of their values v (B, H_kv, S, D)."""
    B, H_kv, _, D = v.shape
    none = value_sums.empty(B, H_kv, D, backend)
    sums = value_sums.append(none, v, Lengths.of(0, B), lengths, backend)
    state = CodedValues(codes, scales, sums, lengths, backend)
    _clear(state, lengths.each, np.full(B, TILE * codes.shape[2]))
    return state


def append(
    state: CodedValues, v: Any, added: int | NDArray, lengths: Lengths, guard: Guard
) -> CodedValues:
    """Encode checked values (B, H_kv, S, D) after the others. `lengths` are those after it."""
    old, S = state.lengths, v.shape[2] if np.ndim(added) else int(added)
    room = reserve(state, old.longest + S)
    if room is state:  # else the old arrays are not touched
        guard(Undo([], partial(_clear, state, old.each, old.each + S)))
    sums = value_sums.append(state.sums, v, old, lengths, state.backend)
    start = old.each if lengths.ragged else old.longest
    load(state.backend).encode_values(v, room.codes, room.scales, sums.bases, start, added)
    return room._replace(sums=sums, lengths=lengths)


def cut(state: CodedValues, lengths: Lengths, v: Any, guard: Guard) -> CodedValues:
    """Drop all tokens after `lengths`. v (B, H_kv, S, D) has the values that are left."""
    old = state.lengths
    room = reserve(state, old.longest)
    if room is state:
        saved = []
        for one, first, end in ranges(lengths.each // TILE, -(-old.each // TILE)):
            saved += [x[one, :, first:end] for x in (state.codes, state.scales)]
        guard(Undo([(x, x.copy()) for x in saved]))
    _clear(room, lengths.each, old.each)
    sums = value_sums.cut(state.sums, v, old, lengths, state.backend)
    return room._replace(sums=sums, lengths=lengths)


def record_of_first(state: CodedValues, v: Any, counts: NDArray) -> Values:
    """What backends read of the first counts (B,) tokens alone; v (B, H_kv, S, D) has the values.

    The codes may go on after these tokens. At most 4096 values of each sequence are read.
    """
    first = Lengths(counts, ragged=True)
    sums = value_sums.cut(state.sums, v, state.lengths, first, state.backend)
    return state.record()._replace(total=sums.total())


def take(state: CodedValues, order: NDArray) -> CodedValues:
    """Values of the sequences `order` (B',), in arrays of their own; -1 is an empty sequence."""
    xp, lengths = array_module(state.backend), state.lengths.take(order)
    codes, scales = (take_sequences(xp, x, order) for x in state.used())
    sums = value_sums.take(state.sums, order, lengths, state.backend)
    return CodedValues(codes, scales, sums, lengths, state.backend)


def reserve(state: CodedValues, tokens: int) -> CodedValues:
    """The values with room for `tokens` tokens."""
    held, needed = state.codes.shape[2], tiles(tokens)
    if needed <= held:
        return state
    xp, T = array_module(state.backend), max(needed, 2 * held)
    codes, scales = (grown(xp, x, 2, T) for x in state.used())
    return state._replace(codes=codes, scales=scales)


def _clear(state: CodedValues, first: NDArray, end: NDArray) -> None:
    """Set codes and scales of the tokens first to end - 1 of each sequence to 0."""
    for one, start, stop in ranges(first, np.minimum(end, TILE * state.codes.shape[2])):
        tile, slot = divmod(start, TILE)
        for x in (state.codes, state.scales):
            x[one, :, tile, slot:] = 0
            x[one, :, tile + 1 : tiles(stop)] = 0
