"""The metadata of a file: values by name, with errors that name the file."""

from __future__ import annotations

import math
import reprlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")


class CheckpointError(ValueError):
    """A file is damaged, incomplete, or of a kind that is not supported. The text names it."""


@dataclass(frozen=True)
class Settings:
    """Values of a file by name. Their type is checked when they are read."""

    path: Path
    lookup: Callable[[str], Any]  # it returns None for a name that is absent

    def get(self, name: str, kind: type[T], default: T | None = None) -> T:
        """The value of `name`. It is an error if there is neither a value nor a default."""
        value = self.optional(name, kind)
        if value is None:
            value = default
        if value is None:
            raise CheckpointError(f"{self.path}: {name} is missing")
        return value

    def optional(self, name: str, kind: type[T]) -> T | None:
        """The value of `name`, or None if it is absent. A float is finite."""
        value = self.lookup(name)
        if value is None:
            return None
        if kind is float and type(value) is int and abs(value) < 2**1000:
            value = float(value)
        if type(value) is not kind:
            raise CheckpointError(
                f"{self.path}: {name} is {reprlib.repr(value)}, expected {kind.__name__}"
            )
        if isinstance(value, float) and not math.isfinite(value):
            raise CheckpointError(f"{self.path}: {name} is {value}, expected a finite number")
        return value

    def items(self, name: str, kind: type[T], default: list[T] | None = None) -> list[T]:
        """The list `name`, whose items are all of one type."""
        values = self.get(name, list, default)
        for i, value in enumerate(values):
            if type(value) is not kind:
                raise CheckpointError(
                    f"{self.path}: {name}[{i}] is {reprlib.repr(value)}, expected {kind.__name__}"
                )
        return values
