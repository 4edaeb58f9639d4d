"""Encoding with the `tokenizers` package."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def library_encoder(tokenizer: Any) -> Callable[[str, bool], list[int]]:
    """The encoder of a `Tokenizer` from a tokenizer of the package."""

    def encode(text: str, special: bool) -> list[int]:
        tokenizer.encode_special_tokens = not special
        return list(tokenizer.encode(text, add_special_tokens=False).ids)

    return encode
