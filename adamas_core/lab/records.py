"""Finished results in a JSON-lines file, so that a run goes on where it was interrupted."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any


class Record:
    """Results by key, each written as soon as it is there.

    The first line holds the settings, each further one a result. A line that was cut by an
    interruption counts as not written.

    Parameters
    ----------
    path : Path
    settings : mapping
        What all results depend on; a file of other settings is refused.
    key : sequence of str
        The fields of a result that tell it from the others.

    Raises
    ------
    ValueError
        The file is of other settings; the error names the first that differs.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any], key: Sequence[str]) -> None:
        self._path = path
        self._key = tuple(key)
        self._results: dict[tuple[Any, ...], dict[str, Any]] = {}
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = list(_whole_lines(path)) if path.exists() else []
        if not lines:
            path.write_text(json.dumps({"settings": settings}) + "\n", encoding="utf-8")
            return
        self._same("", lines[0].get("settings", {}), settings)
        for result in lines[1:]:
            self._results[self._of(result)] = result
        if not path.read_bytes().endswith(b"\n"):
            self._append("\n")

    def has(self, wanted: Mapping[str, Any]) -> bool:
        """Whether the result is there; `wanted` has the key, and what it has to agree in.

        Raises
        ------
        ValueError
            The result is there with another value in one of the fields of `wanted`.
        """
        found = self._results.get(self._of(wanted))
        if found is None:
            return False
        told = " ".join(str(wanted[name]) for name in self._key)
        self._same(f" for {told}", {name: found.get(name) for name in wanted}, wanted)
        return True

    def add(self, result: dict[str, Any]) -> None:
        """Write a finished result."""
        self._append(json.dumps(result) + "\n")
        self._results[self._of(result)] = result

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self._results.values())

    def _of(self, result: Mapping[str, Any]) -> tuple[Any, ...]:
        return tuple(result[name] for name in self._key)

    def _append(self, text: str) -> None:
        with self._path.open("a", encoding="utf-8") as file:
            file.write(text)

    def _same(self, where: str, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
        for name in sorted({*found, *wanted}):
            if found.get(name) != wanted.get(name):
                raise ValueError(
                    f"{self._path} holds results{where} of {name} = {found.get(name)!r}, now it "
                    f"is {wanted.get(name)!r}: choose another --out, or remove that file"
                )


def _whole_lines(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8") as file:
        for line in file:
            try:
                yield json.loads(line)
            except json.JSONDecodeError:
                continue
