"""Finished results in a JSON-lines file, so that an interrupted run can be continued."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from .. import __version__
from ..file_errors import naming


def settings(model: Path, positions: int | None = None) -> dict[str, Any]:
    """The settings that every result of a record depends on; tasks do not depend on positions."""
    files = [model] if model.is_file() else sorted(f for f in model.iterdir() if f.is_file())
    common = {
        "adamas_core": __version__,
        "model": model.name,
        "model_bytes": sum(f.stat().st_size for f in files),
    }
    return common if positions is None else {**common, "positions": positions}


class Record:
    """Results by key; each is written as soon as it is there.

    The first line of the file holds the settings, each further line a result. A line that an
    interruption has cut counts as not written.

    Parameters
    ----------
    path : Path
    settings : mapping
        All results depend on them. A file with other settings is refused.
    key : sequence of str
        The fields that distinguish a result from the others.

    Raises
    ------
    ValueError
        The file has other settings. The error names the first difference.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any], key: Sequence[str]) -> None:
        self._path = path
        self._key = tuple(key)
        self._results: dict[tuple[Any, ...], dict[str, Any]] = {}
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = list(_whole_lines(path)) if path.exists() else []
        if len(lines) < 2:  # no result depends on the settings yet
            with naming(path):
                path.write_text(json.dumps({"settings": settings}) + "\n", encoding="utf-8")
            return
        self._require_equal("", lines[0].get("settings", {}), settings)
        for result in lines[1:]:
            self._results[self._key_of(result)] = result
        if not path.read_bytes().endswith(b"\n"):
            self._append("\n")

    def has(self, description: Mapping[str, Any]) -> bool:
        """Whether the result of this description is there.

        A description holds the key and other fields that are known before the measurement.

        Raises
        ------
        ValueError
            The result is there, but a field of its description differs.
        """
        found = self._results.get(self._key_of(description))
        if found is None:
            return False
        key = " ".join(str(description[name]) for name in self._key)
        self._require_equal(
            f" for {key}", {name: found.get(name) for name in description}, description
        )
        return True

    def add(self, result: dict[str, Any]) -> None:
        """Write a finished result."""
        self._append(json.dumps(result) + "\n")
        self._results[self._key_of(result)] = result

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self._results.values())

    def _key_of(self, result: Mapping[str, Any]) -> tuple[Any, ...]:
        return tuple(result[name] for name in self._key)

    def _append(self, text: str) -> None:
        with naming(self._path), self._path.open("a", encoding="utf-8") as file:
            file.write(text)

    def _require_equal(
        self, where: str, found: Mapping[str, Any], wanted: Mapping[str, Any]
    ) -> None:
        for name in sorted({*found, *wanted}):
            if found.get(name) != wanted.get(name):
                raise ValueError(
                    f"{self._path} holds results{where} of {name} = {found.get(name)!r}, now it "
                    f"is {wanted.get(name)!r}: choose another --out, or remove that file"
                )


def _whole_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The lines that are complete JSON."""
    with path.open(encoding="utf-8") as file:
        for line in file:
            try:
                yield json.loads(line)
            except json.JSONDecodeError:
                continue
