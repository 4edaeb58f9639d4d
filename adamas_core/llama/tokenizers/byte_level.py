"""Byte-level BPE, GPT-2's kind: every byte is a letter, and pairs of letters are merged by rank."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ...extra import needs_extra
from ..library_errors import library_errors
from ..settings import CheckpointError, Settings

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# How each model splits a text before it merges. Every pattern splits the parts of the one before.
PATTERNS = {
    "gpt-2": [_GPT2],
    "smollm": [r"\p{N}", _GPT2],
    "default": [r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", r"[0-9][0-9][0-9]"],
    "llama-bpe": [_LLAMA3],
    "qwen2": [_LLAMA3.replace("{1,3}", "")],
}
PATTERNS |= {"llama3": [_LLAMA3], "llama-v3": [_LLAMA3], "deepseek-r1-qwen": PATTERNS["qwen2"]}
# Llama 3's models look up a whole word before they merge, and expect BOS.
LLAMA3_NAMES = ("llama-bpe", "llama3", "llama-v3")


def _byte_of_letter() -> dict[str, int]:
    """Each byte has a printable letter: its own character, or one from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(b): b for b in printable} | {chr(0x100 + i): b for i, b in enumerate(others)}


_BYTE_OF_LETTER = _byte_of_letter()


def token_bytes(token: str) -> bytes:
    """The bytes of a token. A token with other letters is its own text."""
    try:
        return bytes(_BYTE_OF_LETTER[letter] for letter in token)
    except KeyError:
        return token.encode()


def byte_level_bpe(
    settings: Settings, pre: str, tokens: list[str], control: Iterable[int], atoms: Iterable[int]
) -> Any:
    """A tokenizer of the `tokenizers` package from the tables of a GGUF file.

    `pre` names the patterns. `atoms` are the ids that are never merged or split; `control` are the
    atoms that are control tokens.
    """
    lib = needs_extra("tokenizers")
    if pre not in PATTERNS:
        raise CheckpointError(
            f"{settings.path}: pre-tokenizer {pre!r} is not one of {', '.join(PATTERNS)}"
        )
    uncut = set(atoms)
    # The gguf package leaves out an empty list. A file of single letters needs no merges.
    letters_only = all(len(token) < 2 or i in uncut for i, token in enumerate(tokens))
    pairs = settings.items("tokenizer.ggml.merges", str, [] if letters_only else None)
    merges = [tuple(pair.split(" ")) for pair in pairs]
    vocab = {token: i for i, token in enumerate(tokens)}
    with library_errors(f"{settings.path}: tokenizer.ggml.merges"):
        model = lib.models.BPE(vocab, merges, ignore_merges=pre in LLAMA3_NAMES)
    tokenizer = lib.Tokenizer(model)
    if pre == "qwen2":
        tokenizer.normalizer = lib.normalizers.NFC()  # as in the tokenizer.json of these models
    split = lib.pre_tokenizers
    tokenizer.pre_tokenizer = split.Sequence(
        [split.Split(lib.Regex(pattern), "isolated") for pattern in PATTERNS[pre]]
        + [split.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    special = set(control)
    tokenizer.add_tokens(
        [
            lib.AddedToken(tokens[i], special=i in special, normalized=False)
            for i in sorted(uncut)
            if tokens[i]
        ]
    )
    return tokenizer
