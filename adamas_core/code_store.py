"""Codes in arrays with free slots: append, cut and take sequences, without damage on the way.

`Coded` never changes. Each operation returns another one, and its caller replaces the old one by a
single store. Both may share arrays, because new tokens are written into free slots. Some operations
must also write over tokens that the old one holds: a centered tile that becomes full is coded
again, and dropped slots are cleared. Then the operation first hands over an `Undo`. If it does not
end, the undo puts the old bytes back.

In every state, each free slot of planes and scales is 0, and the mean of each tile without tokens.
So equal tokens give equal arrays, whatever was appended and dropped before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from . import checks
from .dispatch import array_module, load
from .lengths import Lengths
from .reference.layout import TILE, Centers, Codes, Fine, padded, tiles, words

NDArray = np.ndarray[Any, Any]
Guard: TypeAlias = Callable[["Undo"], None]


class Coded(NamedTuple):
    """Codes of the keys of one layer."""

    planes: Any  # (2, B, H_kv, T, 8, P, 8), with room for more tokens than there are
    centers: Centers | None  # with the same room
    fine: Fine | None  # with the same room; only with centers
    thresholds: Any  # (H_kv, 3), on the device of the planes
    lengths: Lengths
    head_dim: int
    backend: str

    def record(self) -> Codes:
        """The codes as backends read them."""
        return Codes(
            self.used(),
            self.lengths.given(),
            self.thresholds,
            self.used_centers(),
            self.used_fine(),
        )

    def shape(self) -> tuple[int, int, int, int]:
        """(B, H_kv, tokens, D) of the coded keys."""
        B, H_kv = self.planes.shape[1:3]
        return B, H_kv, self.lengths.longest, self.head_dim

    def device(self) -> str:
        """The device of the planes."""
        return checks.device(self.planes)

    def nbytes(self) -> int:
        """Bytes of the tiles in use, and of the open tile."""
        used = (self.used(), *(self.used_centers() or ()), *(self.used_fine() or ()))
        return sum(int(x.nbytes) for x in used)

    def used(self) -> Any:
        """The planes of the tiles in use."""
        return self.planes[:, :, :, : tiles(self.lengths.longest)]

    def used_centers(self) -> Centers | None:
        """Means and scales of the tiles in use, and the open tile."""
        if self.centers is None:
            return None
        means, scales, open_tile = self.centers
        T = tiles(self.lengths.longest)
        return Centers(means[:, :, :T], scales[:, :, :T], open_tile)

    def used_fine(self) -> Fine | None:
        """Third bits and their scales of the tiles in use."""
        if self.fine is None:
            return None
        return Fine._make(x[:, :, : tiles(self.lengths.longest)] for x in self.fine)


class Kind(NamedTuple):
    """What codes hold."""

    centered: bool
    fine: bool = False  # whether they have a third bit


class Undo(NamedTuple):
    """How arrays get back to a state that an operation has begun to write over."""

    saved: list[tuple[Any, Any]]  # views of the arrays, and what they held
    clear: Callable[[], None] = lambda: None  # free slots that may have been written

    def restore(self) -> None:
        for view, before in self.saved:
            view[...] = before
        self.clear()


def empty(
    B: int, H_kv: int, D: int, thresholds: Any, backend: str, capacity: int, kind: Kind
) -> Coded:
    """Codes of no token, with room for `capacity` tokens; thresholds are on the device."""
    xp = array_module(backend)
    T, Dt, P = tiles(capacity), padded(D), words(D)
    centers = fine = None
    if kind.centered:
        centers = Centers(
            xp.zeros((B, H_kv, T, Dt), np.float16),
            xp.zeros((B, H_kv, T, TILE), np.uint8),
            xp.zeros((B, H_kv, TILE, Dt), np.float32),
        )
    if kind.fine:
        bits = xp.zeros((B, H_kv, T, TILE, P), np.uint64)
        fine = Fine(bits, xp.zeros((B, H_kv, T, TILE), np.uint8))
    planes = xp.zeros((2, B, H_kv, T, 8, P, 8), np.uint64)
    return Coded(planes, centers, fine, thresholds, Lengths.of(0, B), D, backend)


def head_thresholds(thresholds: NDArray, H_kv: int, backend: str) -> Any:
    """Thresholds (H_kv, 3) on the device of a backend, in an array that nobody else holds."""
    t = array_module(backend).array(np.broadcast_to(thresholds, (H_kv, 3)), order="C")
    if isinstance(t, np.ndarray):
        t.setflags(write=False)
    return t


def append(state: Coded, k: Any, added: int | NDArray, lengths: Lengths, guard: Guard) -> Coded:
    """Encode checked keys (B, H_kv, S, D) after the others. `lengths` are those after it."""
    if not np.ndim(added):
        k = k[:, :, :added]
    old, S = state.lengths, k.shape[2]
    room = reserve(state, old.longest + S)
    home = load(state.backend)
    start = old.each if lengths.ragged else old.longest
    if room is state:  # else the old arrays are not touched
        filled = [] if state.centers is None else _filled_tiles(old, lengths)
        guard(Undo(_saved(state, filled), partial(clear, state, old.each, old.each + S)))
    if room.centers is None:
        home.encode(k, room.thresholds, room.planes, start)
        if np.ndim(added):
            clear(room, lengths.each, old.each + S)  # this kernel codes all S keys of each sequence
    else:
        home.encode_centered(k, room.thresholds, room.planes, room.centers, start, added, room.fine)
    return room._replace(lengths=lengths)


def cut(state: Coded, lengths: Lengths, k: Any, guard: Guard) -> Coded:
    """Drop all tokens after `lengths`. Keys (B, H_kv, S, D) are needed where `reopened` is true."""
    old = state.lengths
    room = reserve(state, old.longest)
    if room is state:
        dropped = ranges(lengths.each // TILE, -(-old.each // TILE))
        guard(Undo(_saved(state, list(dropped))))
    clear(room, lengths.each, old.each)
    if room.centers is not None:
        for b in np.flatnonzero(reopened(old, lengths)):
            one, n = slice(b, b + 1), int(lengths.each[b])
            first = n // TILE * TILE
            means, scales, open_tile = room.centers
            centers = Centers(means[one], scales[one], open_tile[one])
            fine = room.fine and Fine._make(x[one] for x in room.fine)
            load(state.backend).encode_centered(
                k[one, :, first:n], room.thresholds, room.planes[:, one], centers, first, fine=fine
            )
    return room._replace(lengths=lengths)


def reopened(old: Lengths, new: Lengths) -> NDArray:
    """The sequences (B,) whose cut opens a full tile again: its tokens need another mean."""
    inside: NDArray = (new.each % TILE != 0) & (old.each // TILE > new.each // TILE)
    return inside


def take(state: Coded, order: NDArray) -> Coded:
    """Codes of the sequences `order` (B',), in arrays of their own; -1 is an empty sequence."""
    xp = array_module(state.backend)
    centers = state.used_centers()
    if centers is not None:
        centers = Centers(*(take_sequences(xp, x, order) for x in centers))
    fine = state.used_fine()
    if fine is not None:
        fine = Fine._make(take_sequences(xp, x, order) for x in fine)
    taken = state._replace(centers=centers, fine=fine, lengths=state.lengths.take(order))
    return taken._replace(planes=take_sequences(xp, state.used(), order, axis=1))


def take_sequences(xp: Any, x: Any, order: NDArray, axis: int = 0) -> Any:
    """A copy of the sequences `order` along an axis, zeros where order is -1."""
    before = (slice(None),) * axis
    found = xp.zeros((*x.shape[:axis], len(order), *x.shape[axis + 1 :]), x.dtype)
    for i, b in enumerate(map(int, order)):
        if b >= 0:
            found[(*before, i)] = x[(*before, b)]
    return found


def reserve(state: Coded, tokens: int) -> Coded:
    """The codes with room for `tokens` tokens, in arrays that can be written."""
    held, needed = state.planes.shape[3], tiles(tokens)
    # A caller's arrays may be read-only; CuPy's never are.
    mine = (state.planes, *(state.centers or ()), *(state.fine or ()))
    if needed <= held and all(getattr(x.flags, "writeable", True) for x in mine):
        return state
    T = needed if needed <= held else max(needed, 2 * held)
    xp = array_module(state.backend)
    centers = state.used_centers()
    if centers is not None:
        means, scales, open_tile = centers
        centers = Centers(
            grown(xp, means, 2, T), grown(xp, scales, 2, T), grown(xp, open_tile, 2, TILE)
        )
    fine = state.used_fine()
    if fine is not None:
        fine = Fine._make(grown(xp, x, 2, T) for x in fine)
    return state._replace(planes=grown(xp, state.used(), 3, T), centers=centers, fine=fine)


def clear(state: Coded, first: NDArray, end: NDArray) -> None:
    """Set planes and scales of the tokens first to end - 1 of each sequence to 0.

    So are the means of tiles that begin with one of them.
    """
    for one, start, stop in ranges(first, np.minimum(end, TILE * state.planes.shape[3])):
        tile, slot = divmod(start, TILE)
        group, lane = divmod(slot, 8)
        last = tiles(stop)
        planes = state.planes[:, one]
        planes[:, :, :, tile, group, :, lane:] = 0
        planes[:, :, :, tile, group + 1 :] = 0
        planes[:, :, :, tile + 1 : last] = 0
        if state.centers is not None:
            scales, means = state.centers.scales[one], state.centers.means[one]
            scales[:, :, tile, slot:] = 0
            scales[:, :, tile + 1 : last] = 0
            means[:, :, tiles(start) : last] = 0
        for x in state.fine or ():
            x[one, :, tile, slot:] = 0
            x[one, :, tile + 1 : last] = 0


def ranges(first: NDArray, end: NDArray) -> Iterator[tuple[slice, int, int]]:
    """(sequences, first, end) of the ranges that are not empty; all sequences in one if equal."""
    if len(first) and (first == first[0]).all() and (end == end[0]).all():
        if first[0] < end[0]:
            yield slice(None), int(first[0]), int(end[0])
        return
    for b in np.flatnonzero(first < end):
        yield slice(b, b + 1), int(first[b]), int(end[b])


def _filled_tiles(old: Lengths, new: Lengths) -> list[tuple[slice, int, int]]:
    """(sequences, tile, tile + 1) of the tiles with tokens that become full."""
    if not new.ragged:
        first, slot = divmod(old.longest, TILE)
        fills = slot and new.longest // TILE > first
        return [(slice(None), first, first + 1)] if fills else []
    tile = old.each // TILE
    full = (old.each % TILE != 0) & (new.each // TILE > tile)
    return list(ranges(tile, tile + full))


def _saved(state: Coded, ranges: list[tuple[slice, int, int]]) -> list[tuple[Any, Any]]:
    """Views and copies of everything that belongs to tiles (sequences, first, end)."""
    views = []
    for one, first, end in ranges:
        views.append(state.planes[:, one, :, first:end])
        if state.centers is not None:
            means, scales, open_tile = state.centers
            views += [means[one, :, first:end], scales[one, :, first:end], open_tile[one]]
        views += [x[one, :, first:end] for x in state.fine or ()]
    return [(view, view.copy()) for view in views]


def grown(xp: Any, x: Any, axis: int, size: int) -> Any:
    """A copy of x with this size along an axis, zeros at its end."""
    larger = xp.zeros((*x.shape[:axis], size, *x.shape[axis + 1 :]), x.dtype)
    larger[(slice(None),) * axis + (slice(x.shape[axis]),)] = x
    return larger
