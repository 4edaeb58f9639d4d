"""The metadata of a file: values by name, with errors that name the file."""

from __future__ import annotations

import json
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
        value = self.lookup(name)
        if value is None:
            value = default
        if value is None:
            raise CheckpointError(f"{self.path}: {name} is missing")
        if kind is float and type(value) is int:
            value = float(value)
        if type(value) is not kind:
            raise CheckpointError(f"{self.path}: {name} is {value!r}, expected {kind.__name__}")
        return value


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path}: missing") from None
    except ValueError as error:
        raise CheckpointError(f"{path}: damaged, or cut short: {error}") from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{path}: expected a JSON object")
    return values
