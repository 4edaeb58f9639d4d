"""Encoding with the `tokenizers` package."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..library_errors import library_errors


def library_encoder(path: Path, tokenizer: Any) -> Callable[[str, bool], list[int]]:
    """The encoder of a `Tokenizer` from a tokenizer of the package. `path` is for errors."""

    def encode(text: str, special: bool) -> list[int]:
        with library_errors(f"{path}: this tokenizer cannot encode the text"):
            tokenizer.encode_special_tokens = not special
            return list(tokenizer.encode(text, add_special_tokens=False).ids)

    return encode
