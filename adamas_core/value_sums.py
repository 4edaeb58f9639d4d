"""Sums of values that grow token by token, and go back to fewer tokens; and the values' bases.

The order of additions is that of `total_of` and `bases_of` in reference.values: the values of a
tile one by one, then the tiles one by one. So the sums have the same bits, however their tokens
came and whatever was dropped again. To drop tokens, the tiles since the last mark are added up
again.

`Sums` never changes. Each operation returns another one, in arrays of its own.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from .code_store import ranges, take_sequences
from .dispatch import array_module
from .lengths import Lengths
from .reference.layout import TILE

NDArray = np.ndarray[Any, Any]

# Tokens from one mark to the next: the most that are added up again when tokens are dropped.
STRIDE = 64 * TILE


class Sums(NamedTuple):
    """Sums of the values of each sequence and head, all float32."""

    full: Any  # (B, H_kv, D): of the tiles that are full
    open: Any  # (B, H_kv, D): of the tile in progress
    marks: Any  # (B, H_kv, C, D): of the first STRIDE, 2 STRIDE, ... tokens
    bases: Any  # (B, H_kv, 2, D): the first value, and the mean of the first 64; 0 before that

    def total(self) -> Any:
        """The sums of all values (B, H_kv, D)."""
        with np.errstate(over="ignore", invalid="ignore"):
            return self.full + self.open

    def nbytes(self) -> int:
        return sum(int(x.nbytes) for x in self)


def empty(B: int, H_kv: int, D: int, backend: str) -> Sums:
    """The sums of no value."""
    xp = array_module(backend)
    nothing = xp.zeros((B, H_kv, D), np.float32)
    marks, bases = (xp.zeros((B, H_kv, n, D), np.float32) for n in (0, 2))
    return Sums(nothing, nothing, marks, bases)


def append(sums: Sums, v: Any, old: Lengths, new: Lengths, backend: str) -> Sums:
    """The sums after new values v (B, H_kv, S, D): tokens old to new - 1 of each sequence."""
    xp = array_module(backend)
    sums = _copied(xp, sums, bool((new.each // STRIDE > old.each // STRIDE).any()), new)
    for one, first, end in ranges(old.each, new.each):
        _add(xp, sums, one, v[one, :, : end - first], first)
    return sums


def cut(sums: Sums, v: Any, old: Lengths, new: Lengths, backend: str) -> Sums:
    """The sums of the first `new` values of each sequence; v (B, H_kv, S, D) holds them."""
    xp = array_module(backend)
    sums = _copied(xp, sums, True, new)
    for one, end, before in ranges(new.each, old.each):
        if before // TILE > end // TILE:
            marked = end // STRIDE
            sums.full[one] = sums.marks[one, :, marked - 1] if marked else 0
            first = marked * STRIDE
        else:  # the same tile is in progress
            first = end // TILE * TILE
        sums.open[one] = 0
        _add(xp, sums, one, v[one, :, first:end], first)
    for b, n in enumerate(new.each):
        sums.marks[b, :, n // STRIDE :] = 0
        sums.bases[b, :, int(n > 0) + int(n >= TILE) :] = 0
    return sums


def take(sums: Sums, order: NDArray, lengths: Lengths, backend: str) -> Sums:
    """The sums of the sequences `order`, whose lengths are given; -1 is an empty sequence."""
    xp = array_module(backend)
    taken = Sums(*(take_sequences(xp, x, order) for x in sums))
    return taken._replace(marks=taken.marks[:, :, : lengths.longest // STRIDE])


def _copied(xp: Any, sums: Sums, marked: bool, lengths: Lengths) -> Sums:
    """A copy that can be written: of the marks too if `marked`, with room for these lengths."""
    marks = sums.marks
    if marked:
        B, H_kv, held, D = marks.shape
        count = lengths.longest // STRIDE
        marks = xp.zeros((B, H_kv, count, D), np.float32)
        marks[:, :, :held] = sums.marks[:, :, :count]
    return Sums(sums.full.copy(), sums.open.copy(), marks, sums.bases.copy())


def _add(xp: Any, sums: Sums, one: slice, v: Any, start: int) -> None:
    """Add values (B', H_kv, n, D) of the tokens start, start + 1, ... in place."""
    n, done = v.shape[2], 0
    if start == 0 and n:
        sums.bases[one, :, 0] = _finite(xp, v[:, :, 0].astype(np.float32))
    with np.errstate(over="ignore", invalid="ignore"):
        while done < n and (start + done) % TILE:  # the tile in progress
            sums.open[one] += v[:, :, done].astype(np.float32)
            done += 1
            if (start + done) % TILE == 0:
                _close(xp, sums, one, sums.open[one], start + done)
                sums.open[one] = 0
        whole = (n - done) // TILE
        if whole:
            tiles = xp.zeros((*v.shape[:2], whole, v.shape[3]), np.float32)
            for slot in range(TILE):  # in each tile token by token, in all tiles at once
                tiles += v[:, :, done + slot : done + whole * TILE : TILE].astype(np.float32)
            for t in range(whole):
                _close(xp, sums, one, tiles[:, :, t], start + done + (t + 1) * TILE)
        for i in range(done + whole * TILE, n):
            sums.open[one] += v[:, :, i].astype(np.float32)


def _close(xp: Any, sums: Sums, one: slice, tile: Any, end: int) -> None:
    """Add a tile that ends before token `end`, and set the mark there, and the base it gives."""
    sums.full[one] += tile
    if end == TILE:
        sums.bases[one, :, 1] = _finite(xp, tile * np.float32(1 / TILE))
    if end % STRIDE == 0:
        sums.marks[one, :, end // STRIDE - 1] = sums.full[one]


def _finite(xp: Any, x: Any) -> Any:
    """x, with 0 where it is not finite."""
    return xp.where(xp.isfinite(x), x, xp.zeros_like(x))
