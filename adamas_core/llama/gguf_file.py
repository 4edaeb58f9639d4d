"""Open a GGUF file, which holds a model, a tokenizer, or both."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .extra import needs_extra
from .settings import CheckpointError, Settings


def is_gguf(path: Path) -> bool:
    """Whether a file begins with the mark of GGUF."""
    with path.open("rb") as file:
        return file.read(4) == b"GGUF"


def open_gguf(path: Path) -> tuple[Any, Settings]:
    """The reader of the `gguf` package for a file, and the file's metadata as settings."""
    gguf = needs_extra("gguf")

    class Reader(gguf.GGUFReader):  # type: ignore[misc, name-defined]
        """Keeps the mapped file as a plain array.

        The reader takes one slice per vocabulary entry, and slices of np.memmap are slow. The
        tables of 49,152 tokens take 0.7 s this way, and 1.9 s with np.memmap.
        """

        @property
        def data(self) -> NDArray[np.uint8]:
            return self._data

        @data.setter
        def data(self, mapped: NDArray[np.uint8]) -> None:
            self._data = mapped.view(np.ndarray)

    try:
        reader = Reader(path)
    except Exception as error:  # for a damaged file the package raises almost any error
        raise CheckpointError(f"{path}: damaged, or cut short: {error}") from error

    def lookup(name: str) -> Any:
        field = reader.get_field(name)
        try:
            return None if field is None else field.contents()
        except ValueError as error:
            raise CheckpointError(f"{path}: {name} is damaged: {error}") from error

    settings = Settings(path, lookup)
    if settings.get("split.count", int, 1) > 1:
        raise CheckpointError(f"{path}: one part of several; join them with gguf-split --merge")
    return reader, settings
