"""Records: the arguments of a kernel, filled by name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from struct import Struct
from typing import Any

import numpy as np
from numpy.typing import NDArray


class Record:
    """A kind of record: int64 fields, and float64 ones where `floats` names them.

    The fields of `kernels` come after the others. Kernels fill them, and no call can.

    A call fills one record by name. Fields come in any number of mappings, or as keywords. A field
    that is not given is 0. The result is an array of one record, which a kernel takes.

    Raises
    ------
    TypeError
        The record has no field of a given name.
    """

    def __init__(
        self, *names: str, floats: tuple[str, ...] = (), kernels: tuple[str, ...] = ()
    ) -> None:
        every = names + kernels
        if len(set(every)) != len(every) or not set(floats) <= set(names):
            raise TypeError(f"Record: names {every}, floats {floats}; expected each name once")
        codes = ["d" if name in floats else "q" for name in names]
        self.dtype = np.dtype(
            [(n, f"={c}") for n, c in zip(names, codes, strict=True)] + [(n, "=q") for n in kernels]
        )
        self._kernels = bytes(8 * len(kernels))
        # Packing takes a third of the time that NumPy takes to convert a tuple.
        self._pack = Struct("=" + "".join(codes)).pack
        self._zeros: dict[str, float] = dict.fromkeys(names, 0)

    def __call__(self, *parts: Mapping[str, float], **fields: float) -> NDArray[Any]:
        return self.filled((*parts, fields))

    def filled(self, parts: Iterable[Mapping[str, float]]) -> NDArray[Any]:
        """The same with all fields in mappings: keywords would be copied at each call."""
        values = self._zeros.copy()
        for part in parts:
            values |= part
        if len(values) != len(self._zeros):
            unknown = ", ".join(list(values)[len(self._zeros) :])
            raise TypeError(f"Record: unknown fields {unknown}; expected {', '.join(self._zeros)}")
        return np.frombuffer(bytearray(self._pack(*values.values()) + self._kernels), self.dtype)

    def offset(self, name: str) -> int:
        """Where a field begins, in bytes."""
        return 8 * self.dtype.names.index(name)  # type: ignore[union-attr]
