"""Arrays that count: the operations done on them, and the bytes read of a state or a cache.

A count does not depend on the machine, or on what else runs on it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

# Functions that copy their arguments without arithmetic. Others are made of ufuncs, or give views.
COPIES = (np.concatenate, np.where, np.take_along_axis, np.repeat, np.array)
SORTS = (np.argpartition, np.argsort, np.sort)


@dataclass
class Tally:
    """What was counted.

    Attributes
    ----------
    operations : int
        Results of arithmetic; a product of matrices counts a multiplication and an addition per
        term. Masks and indices that are no `Counted` arrays are not counted.
    read : int
        Bytes read of the arrays in `ranges`, each time that they are read.
    largest : int
        Numbers in the largest array that was made.
    ranges : list of (int, int)
        Addresses of the arrays of the state.
    """

    operations: int = 0
    read: int = 0
    largest: int = 0
    ranges: list[tuple[int, int]] = field(default_factory=list)

    def holds(self, x: NDArray[Any]) -> bool:
        """Whether x is a part of the state."""
        first = x.__array_interface__["data"][0]
        return x.size > 0 and any(low <= first < high for low, high in self.ranges)

    def reads(self, inputs: Any) -> None:
        """Count the bytes of those inputs that are parts of the state; lists are searched."""
        for x in inputs:
            if isinstance(x, (list, tuple)):
                self.reads(x)
            elif isinstance(x, np.ndarray) and self.holds(x):
                sizes = [n for n, stride in zip(x.shape, x.strides, strict=True) if stride]
                self.read += int(np.prod(sizes, dtype=np.int64)) * x.itemsize


class Counted(np.ndarray[Any, Any]):
    """An array whose ufuncs, and whose results, are counted while a tally is active."""

    active: Tally | None = None

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **options: Any) -> Any:
        raw = [_plain(x) for x in inputs]
        if "out" in options:
            options["out"] = tuple(map(_plain, options["out"]))
        result = getattr(ufunc, method)(*raw, **options)
        tally = Counted.active
        if tally is not None and isinstance(result, (np.ndarray, np.generic)):
            terms = 2 * raw[0].shape[-1] if ufunc is np.matmul else 1
            whole = raw[0].size if method in ("reduce", "accumulate") else result.size
            tally.operations += terms * whole
            tally.reads(inputs)
            tally.largest = max(tally.largest, result.size)
        return result.view(Counted) if isinstance(result, np.ndarray) else result

    def __array_function__(self, func: Any, types: Any, args: Any, kwargs: Any) -> Any:
        result = super().__array_function__(func, types, args, kwargs)
        tally = Counted.active
        if tally is not None:
            if func in COPIES:
                tally.reads(args)
                tally.largest = max(tally.largest, result.size)
            elif func in SORTS:
                tally.operations += args[0].size
            elif func is np.linalg.solve:
                *batch, C, _ = args[0].shape
                count, N = int(np.prod(batch)), args[1].shape[-1]
                tally.operations += count * (2 * C**3 // 3 + 2 * C * C * N)
        if isinstance(result, np.ndarray) and result.dtype.kind == "f":
            return result.view(Counted)
        return result

    def __getitem__(self, key: Any) -> Any:
        result = super().__getitem__(key)
        tally = Counted.active
        copied = isinstance(result, np.ndarray) and tally is not None and not tally.holds(result)
        if tally is not None and copied and tally.holds(self):  # a copy of chosen rows
            tally.read += result.nbytes
        return result


def _plain(x: Any) -> Any:
    return x.view(np.ndarray) if isinstance(x, Counted) else x


def counted(x: NDArray[Any]) -> Counted:
    """A view of x that counts."""
    return x.view(Counted)


@contextmanager
def counting(state: Any) -> Iterator[Tally]:
    """Count in the block; `state` is an object whose arrays are the state or the cache."""
    tally = Tally()
    for x in arrays_in(state):
        low, high = np.lib.array_utils.byte_bounds(x)
        tally.ranges.append((low, high))
    Counted.active = tally
    try:
        yield tally
    finally:
        Counted.active = None


def arrays_in(state: Any) -> Iterator[NDArray[Any]]:
    """All arrays in a state: in sequences, mappings, and attributes of objects."""
    if isinstance(state, np.ndarray):
        yield state
    elif isinstance(state, dict):
        yield from arrays_in(list(state.values()))
    elif isinstance(state, (list, tuple)):
        for part in state:
            yield from arrays_in(part)
    elif hasattr(state, "__dict__"):
        yield from arrays_in(list(vars(state).values()))
