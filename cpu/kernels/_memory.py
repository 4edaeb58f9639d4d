"""Memory as kernels see it: records, and whole cache lines."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numba.np.numpy_support import carray

from .._array import LINE
from .._record import Record
from .._records import Loop, Step
from ._jit import inlined
from ._simd import pointer


def reader(record: Record) -> Callable[[Any], Any]:
    """A function for kernels: the record of this kind at an address."""
    dtype = record.dtype

    @inlined
    def read(address):
        return carray(pointer(address), 1, dtype)[0]

    return read


loop_at = reader(Loop)
step_at = reader(Step)


@inlined
def line_of(array):
    """Address of the first whole cache line in an array with a line to spare.

    It does not keep the array alive.
    """
    return (array.ctypes.data + LINE - 1) // LINE * LINE
