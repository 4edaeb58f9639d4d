"""Bounds of the normalizer in a tokenizer.json: damage must not ask for gigabytes."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..settings import CheckpointError

MAX_GROWTH = 100  # of a text, by all replacements one after the other


def check_normalizer(path: Path, normalizer: Any) -> None:
    """Refuse a normalizer that makes the `tokenizers` package ask for much memory."""
    growth = 1.0
    for step in steps(normalizer, "normalizers"):
        if step.get("type") == "Precompiled":
            _check_charsmap(path, step.get("precompiled_charsmap"))
        if step.get("type") == "Replace":
            pattern, content = step.get("pattern"), step.get("content")
            text = pattern.get("String") if isinstance(pattern, dict) else None
            shortest = max(1, len(text)) if isinstance(text, str) else 1
            if isinstance(content, str):
                growth *= max(1, len(content) / shortest)
    if growth > MAX_GROWTH:
        raise CheckpointError(
            f"{path}: normalizer: its replacements make a text {growth:.0f} times as long, "
            f"expected at most {MAX_GROWTH}"
        )


def steps(whole: Any, parts: str) -> Iterator[dict[str, Any]]:
    """A part of a tokenizer.json, and what it holds in its list `parts`, at any depth."""
    if isinstance(whole, dict):
        yield whole
        inner = whole.get(parts)
        for part in inner if isinstance(inner, list) else []:
            yield from steps(part, parts)


def _check_charsmap(path: Path, charsmap: Any) -> None:
    """The table begins with its size in bytes. The package makes room for that size first."""
    try:
        table = base64.b64decode(charsmap)
    except (TypeError, ValueError):
        return  # the package refuses it
    size = int.from_bytes(table[:4], "little")
    if size > len(table) - 4:
        raise CheckpointError(
            f"{path}: normalizer: precompiled_charsmap asks for {size} bytes, and has "
            f"{max(0, len(table) - 4)}"
        )
