"""The metadata of a file: values by name, with errors that name the file."""

from __future__ import annotations

import math
import reprlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")

MAX_SIZE = 2**31 - 1


class CheckpointError(ValueError):
    """A file is damaged, incomplete, or of a kind that is not supported. The text names it."""


@dataclass(frozen=True)
class Settings:
    """Values of a file by name. Their type is checked when they are read."""

    path: Path
    lookup: Callable[[str], Any]  # it returns None for a name that is absent
    prefix: str = ""  # the place of the values in the file, for errors

    def get(self, name: str, kind: type[T], default: T | None = None) -> T:
        """The value of `name`. It is an error if there is neither a value nor a default."""
        value = self.optional(name, kind)
        if value is None:
            value = default
        if value is None:
            raise CheckpointError(f"{self.path}: {self.prefix}{name} is missing")
        return value

    def optional(self, name: str, kind: type[T]) -> T | None:
        """The value of `name`, or None if it is absent. A float is finite."""
        value = self.lookup(name)
        if value is None:
            return None
        if kind is float and type(value) is int and abs(value) < 2**1000:
            value = float(value)
        if type(value) is not kind:
            raise self.unexpected(name, value, kind.__name__)
        if isinstance(value, float) and not math.isfinite(value):
            raise self.unexpected(name, value, "a finite number")
        return value

    def size(self, name: str, default: int | None = None) -> int:
        """The integer `name`, of 1 to MAX_SIZE."""
        value = self.get(name, int, default)
        if not 1 <= value <= MAX_SIZE:
            raise self.unexpected(name, value, f"1 to {MAX_SIZE}")
        return value

    def section(self, name: str) -> Settings:
        """The values of the object `name`, none if it is absent."""
        return Settings(self.path, self.get(name, dict, {}).get, f"{self.prefix}{name}.")

    def items(self, name: str, kind: type[T], default: list[T] | None = None) -> list[T]:
        """The list `name`, whose items are all of one type."""
        values = self.get(name, list, default)
        for i, value in enumerate(values):
            if type(value) is not kind:
                raise self.unexpected(f"{name}[{i}]", value, kind.__name__)
        return values

    def unexpected(self, name: str, value: object, expected: str) -> CheckpointError:
        """The error for a value of another type or size."""
        shown = reprlib.repr(value)
        return CheckpointError(f"{self.path}: {self.prefix}{name} is {shown}, expected {expected}")
