"""A state that is replaced by one store, and is as before if an operation on it does not end."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Generic, TypeVar

from .code_store import Guard, Undo

State = TypeVar("State")


class Operation:
    """An operation on one or more slots. It ends by `runs = False`, in a ``finally``."""

    __slots__ = ("runs",)

    def __init__(self) -> None:
        self.runs = True


class Slot(Generic[State]):
    """Holds a state that never changes itself.

    An operation makes the next state, and `put` replaces the old one. An operation that writes over
    arrays of the old state first hands an `Undo` of these arrays to its `guard`; it may do so
    several times. If it does not end, Ctrl-C included, the next `now` puts the old bytes back.

    Another thread or a signal handler may read the slot while an operation runs. It sees the old
    state, and puts nothing back. Codes that the operation writes over, of tokens that are dropped
    or of a tile that becomes full, may be the new ones by then.
    """

    __slots__ = ("__weakref__", "_state", "_undo")

    def __init__(self, state: State) -> None:
        self._state = state
        self._undo: tuple[State, tuple[Undo, ...], Operation] | None = None

    def now(self) -> State:
        """The state, after a repair if one is needed."""
        kept = self._undo
        if kept is not None:
            guarded, undos, operation = kept
            if operation.runs:
                return self._state
            if guarded is self._state:  # else only the last store of `put` is missing
                for undo in undos:
                    undo.restore()
            self._undo = None
        return self._state

    def guard(self, operation: Operation) -> Guard:
        """The function that keeps how an operation is undone. It is called before the writes."""
        return partial(self._keep, operation)

    def _keep(self, operation: Operation, undo: Undo) -> None:
        kept = self._undo
        before = () if kept is None or kept[2] is not operation else kept[1]
        self._undo = self._state, (*before, undo), operation

    def put(self, state: State) -> None:
        """Replace the state. The operation has ended."""
        self._state = state
        self._undo = None

    def change(self, make: Callable[[Guard], State]) -> None:
        """Put the state that an operation makes with its guard."""
        operation = Operation()
        try:
            self.put(make(self.guard(operation)))
        finally:
            operation.runs = False
