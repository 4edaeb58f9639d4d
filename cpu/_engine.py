"""How kernels run: the functions that they are made of, and the parallel loop."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from numpy.typing import NDArray

from ._array import address_of
from ._record import Record
from ._records import Loop
from .kernels._loop import run
from .kernels._table import FUNCTIONS


def function(name: str) -> int:
    """The address of a function of the kernels, which is compiled or loaded at its first use."""
    return FUNCTIONS[name].address if name else 0


class Kernel:
    """A parallel loop on one kind of record, see Loop in _records.py. Functions go by name."""

    def __init__(
        self, record: Record, *, plan: str, work: str, place: str = "", finish: str = ""
    ) -> None:
        self._record = record
        self._names = {"plan": plan, "place": place, "work": work, "finish": finish}
        self._functions: dict[str, int] = {}

    def __call__(self, *parts: Mapping[str, float], **fields: float) -> NDArray[Any]:
        """Fill a record by name, as Record does, and run the loop on it; returns the record."""
        record = self._record(*parts, **fields)
        if not self._functions:
            self._functions = {key: function(name) for key, name in self._names.items()}
        run(Loop(self._functions, record=address_of(record)))
        return record
