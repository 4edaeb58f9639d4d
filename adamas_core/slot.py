"""A state that is replaced by one store, and is as before if an operation on it does not end."""

from __future__ import annotations

from typing import Generic, TypeVar

from .code_store import Undo

State = TypeVar("State")


class Slot(Generic[State]):
    """Holds a state that never changes itself.

    An operation makes the next state, and `put` replaces the old one. An operation that writes over
    arrays of the old state first hands an `Undo` of these arrays to `guard`; it may do so several
    times. If it does not end, Ctrl-C included, the next `now` puts the old bytes back.
    """

    __slots__ = ("__weakref__", "_state", "_undo")

    def __init__(self, state: State) -> None:
        self._state = state
        self._undo: tuple[State, tuple[Undo, ...]] | None = None

    def now(self) -> State:
        """The state, after a repair if one is needed."""
        if self._undo is not None:
            guarded, undos = self._undo
            if guarded is self._state:  # else only the last store of `put` is missing
                for undo in undos:
                    undo.restore()
            self._undo = None
        return self._state

    def guard(self, undo: Undo) -> None:
        """Keep how an operation on the state is undone, beside what it has handed over already."""
        before = () if self._undo is None else self._undo[1]
        self._undo = self._state, (*before, undo)

    def put(self, state: State) -> None:
        """Replace the state. The operation has ended."""
        self._state = state
        self._undo = None
