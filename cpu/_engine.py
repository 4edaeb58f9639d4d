"""What runs the kernels: the native library, or Numba, which compiles them in this process.

The library runs where it is there, and Numba where it is not. Both run the same code, and have the
same bits. Without either the reference computes, in NumPy. ADAMAS_CPU is "library" to insist on the
library, or "numba" to do without it.
"""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from typing import Any, NamedTuple

from numpy.typing import NDArray

from . import _limits, native
from ._array import address_of
from ._record import Record
from ._records import Loop

LIBRARY, NUMBA, REFERENCE = "library", "numba", "reference"
LOOP_FUNCTIONS = "plan", "place", "work", "finish"  # of a Loop
CHOICE = "ADAMAS_CPU"


class Engine(NamedTuple):
    """Something that runs kernels."""

    name: str  # LIBRARY, NUMBA or REFERENCE
    about: str  # a line for people
    threads: Callable[[], int]  # of a call
    function: Callable[[str], int]  # the address of a function of the kernels, by name
    run: Callable[[int, tuple[int, ...]], None]  # a parallel loop: a record, and its functions


def _start() -> Engine:
    wanted = os.environ.get(CHOICE, "")
    if wanted not in ("", LIBRARY, NUMBA):
        raise ValueError(f"{CHOICE}={wanted!r}; expected {LIBRARY!r}, {NUMBA!r}, or nothing")
    library = "ADAMAS_CPU=numba" if wanted == NUMBA else native.load()
    if not isinstance(library, str):
        return _of_the_library(library)
    if wanted == LIBRARY:
        raise ImportError(f"{CHOICE}={LIBRARY}, but {library}")
    if find_spec("numba") is None:
        return _none(f"{library}, and Numba is not installed")
    return _of_numba(library)


def _of_the_library(library: Any) -> Engine:
    text = f"libadamas, {library.adamas_level().decode()}"
    _limits.register(library)

    @functools.cache  # a step asks for five of them
    def function(name: str) -> int:
        return int(library.adamas_internal_function(name.encode()))

    call = library.adamas_internal_run

    def run(record: int, functions: tuple[int, ...]) -> None:
        if call(record, *functions):
            raise MemoryError("adamas_core: no memory for the scratch of this call")

    return Engine(LIBRARY, text, lambda: int(library.adamas_threads()), function, run)


def _of_numba(reason: str) -> Engine:
    from numba.core import config

    if config.DISABLE_JIT:  # type: ignore[attr-defined]
        return _none("NUMBA_DISABLE_JIT is set")
    from .kernels._loop import run as run_loop
    from .kernels._table import FUNCTIONS
    from .kernels._threads import get_num_threads

    def function(name: str) -> int:
        return FUNCTIONS[name].address

    def run(record: int, functions: tuple[int, ...]) -> None:
        run_loop(Loop(dict(zip(LOOP_FUNCTIONS, functions, strict=True)), record=record))

    return Engine(NUMBA, f"Numba: {reason}", get_num_threads, function, run)


def _none(reason: str) -> Engine:
    def refuse(*_: Any) -> Any:
        raise RuntimeError(f"the kernels cannot run: {reason}")

    print(f"adamas-core: {reason}, so the reference computes in NumPy, slowly", file=sys.stderr)
    return Engine(REFERENCE, f"NumPy: {reason}", lambda: 1, refuse, refuse)


ENGINE = _start()
function, _run = ENGINE.function, ENGINE.run


class Kernel:
    """A parallel loop on one kind of record, see Loop in _records.py. Functions go by name."""

    def __init__(
        self, record: Record, *, plan: str, work: str, place: str = "", finish: str = ""
    ) -> None:
        self._filled = record.filled
        self._names = plan, place, work, finish
        self._functions: tuple[int, ...] = ()

    def __call__(self, *parts: Mapping[str, float], **fields: float) -> NDArray[Any]:
        """Fill a record by name, as Record does, and run the loop on it; returns the record."""
        record = self._filled((*parts, fields))
        if not self._functions:
            self._functions = tuple(function(name) if name else 0 for name in self._names)
        _run(address_of(record), self._functions)
        return record
