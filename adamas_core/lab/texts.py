"""The texts that selectors are compared on: the reader's own Python, a file, or pass keys."""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..llama import Tokenizer
from .tasks import FILLER, NAMES, digits

MODULE = "argparse"  # long enough for a window of 8192 tokens in the middle
NEEDLES = 10


@dataclass(frozen=True)
class Text:
    """A text and its windows, the parts that a model reads.

    `cut` takes a tokenizer and contexts, and gives each context's part of the text: context + 1
    tokens. The parts of all contexts end at the same token, so that the same positions are compared
    with more and with fewer tokens before them.
    """

    name: str
    cut: Callable[[Tokenizer, list[int]], dict[int, list[int]]]

    def windows(self, tokenizer: Tokenizer, contexts: list[int]) -> dict[int, list[int]]:
        """The part of each context. It begins with BOS if the model expects that.

        BOS takes the place of the first token. Models that were trained with BOS put much of their
        attention on it, and are not themselves without it.
        """
        parts = self.cut(tokenizer, contexts)
        if tokenizer.adds_bos and tokenizer.bos is not None:
            return {context: [tokenizer.bos, *part[1:]] for context, part in parts.items()}
        return parts


def named(name: str) -> Text:
    """The built-in text of this name, or else the text of a UTF-8 file."""
    if name in BUILT_IN:
        return Text(name, BUILT_IN[name])
    content = utf8(Path(name))
    stem = Path(name).stem.encode("utf-8", "replace").decode()
    return Text(stem, lambda tokenizer, contexts: middle(name, content, tokenizer, contexts))


def utf8(path: Path) -> str:
    """The text of a file; a ValueError names the file if it is not UTF-8."""
    return decoded(str(path), lambda: path.read_text(encoding="utf-8"))


def decoded(name: str, read: Callable[[], str]) -> str:
    """The text that `read` gives; a ValueError says that `name` is not UTF-8."""
    try:
        return read()
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{name} is not UTF-8: the byte 0x{error.object[error.start]:02x} at {error.start} is "
            "part of no character"
        ) from None


def middle(
    name: str, content: str, tokenizer: Tokenizer, contexts: list[int]
) -> dict[int, list[int]]:
    """Windows that end in the middle of a text, or later if it is too short for that."""
    tokens = tokenizer.encode(content, bos=False, special=False)
    longest = max(contexts) + 1
    if len(tokens) < longest:
        raise ValueError(
            f"the text {name} has {len(tokens)} tokens; a context of {longest - 1} needs "
            f"{longest}; --context and --contexts take shorter ones"
        )
    end = max(len(tokens) // 2, longest)
    return {context: tokens[end - context - 1 : end] for context in contexts}


def documentation(tokenizer: Tokenizer, contexts: list[int]) -> dict[int, list[int]]:
    """Windows of the documentation of Python."""
    return middle("pydoc", python_documentation(), tokenizer, contexts)


def python_documentation() -> str:
    """The language reference that Python's help() shows."""
    from pydoc_data.topics import topics

    return "\n\n".join(topics[name] for name in sorted(topics))


def source(tokenizer: Tokenizer, contexts: list[int]) -> dict[int, list[int]]:
    """A module of the standard library."""
    found = importlib.util.find_spec(MODULE)
    if found is None or found.origin is None:
        raise OSError(f"this Python has no source of its module {MODULE}")
    content = Path(found.origin).read_text(encoding="utf-8")
    return middle("source", content, tokenizer, contexts)


def passkeys(tokenizer: Tokenizer, contexts: list[int]) -> dict[int, list[int]]:
    """Pass keys of ten people in filler; about the last 500 tokens ask for each of them."""
    return {context: _passkeys(tokenizer, context) for context in contexts}


def _passkeys(tokenizer: Tokenizer, context: int) -> list[int]:
    """The window of one context: keys at even distances, then questions in another order."""
    rng = np.random.default_rng(0)
    names = rng.choice(NAMES, NEEDLES, replace=False)
    keys = {name: digits(5, rng) for name in names}
    needles = [f"The pass key of {name} is {key}. " for name, key in keys.items()]
    questions = "".join(
        f"What is the pass key of {name}? The pass key of {name} is {keys[name]}. {FILLER}{FILLER}"
        for name in rng.permutation(names)
    )

    def encoded(text: str) -> list[int]:
        return tokenizer.encode(text, bos=False, special=False)

    room = context - len(encoded("".join(needles) + questions))
    between = max(room // (NEEDLES * len(encoded(FILLER))), 0)
    text = "".join(FILLER * between + needle for needle in needles) + questions
    tokens = encoded(text)
    missing = context + 1 - len(tokens)
    if missing > 0:
        lead = encoded(FILLER) * (missing // len(encoded(FILLER)) + 1)
        tokens = lead[-missing:] + tokens
    return tokens[-context - 1 :]


def digest(tokens: list[int]) -> str:
    """A short hash of a window, to notice if it changes."""
    return hashlib.sha256(np.asarray(tokens, np.int32).tobytes()).hexdigest()[:16]


BUILT_IN: dict[str, Callable[[Tokenizer, list[int]], dict[int, list[int]]]] = {
    "pydoc": documentation,
    "source": source,
    "passkeys": passkeys,
}
