"""A tokenizer from the tables of a GGUF file."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from pathlib import Path

from ..gguf_file import open_gguf
from ..gguf_split import refuse_later
from ..settings import CheckpointError, Settings
from . import byte_level, sentencepiece
from .library_encoder import library_encoder
from .tokenizer import Tokenizer

# Values of tokenizer.ggml.token_type.
NORMAL, UNKNOWN, CONTROL, USER_DEFINED = 1, 2, 3, 4


def load(path: Path) -> Tokenizer:
    """The tokenizer of a GGUF file."""
    _, settings = open_gguf(path)
    refuse_later(path, settings)
    kind = settings.get("tokenizer.ggml.model", str)
    tokens = settings.items("tokenizer.ggml.tokens", str)
    types = settings.items("tokenizer.ggml.token_type", int, [NORMAL] * len(tokens))
    if not tokens:
        raise CheckpointError(f"{path}: tokenizer.ggml.tokens is empty")
    if len(types) != len(tokens):
        raise CheckpointError(f"{path}: {len(tokens)} tokens but {len(types)} token types")
    control = frozenset(i for i, t in enumerate(types) if t in (UNKNOWN, CONTROL))
    atoms = {i for i, t in enumerate(types) if t == USER_DEFINED} | control
    token_bytes: Callable[[str], bytes]
    encoder: Callable[[str, bool], list[int]]
    if kind == "gpt2":
        pre = _pre(settings)
        library = byte_level.byte_level_bpe(settings, pre, tokens, control, atoms)
        encoder = library_encoder(path, library)
        token_bytes, strips_space = byte_level.token_bytes, False
        expects_bos = pre in byte_level.LLAMA3_NAMES
    elif kind == "llama":
        strips_space = settings.get("tokenizer.ggml.add_space_prefix", bool, True)
        encoder = _score_bpe(settings, tokens, control, atoms - control, strips_space)
        token_bytes = sentencepiece.token_bytes
        expects_bos = True
    else:
        raise CheckpointError(f"{path}: tokenizer.ggml.model {kind!r} is not gpt2 or llama")
    return Tokenizer(
        pieces=[t.encode() if i in atoms else token_bytes(t) for i, t in enumerate(tokens)],
        control=control,
        bos=_token_id(settings, "tokenizer.ggml.bos_token_id", len(tokens)),
        eos=_token_id(settings, "tokenizer.ggml.eos_token_id", len(tokens)),
        adds_bos=settings.get("tokenizer.ggml.add_bos_token", bool, expects_bos),
        template=settings.optional("tokenizer.chat_template", str),
        strips_space=strips_space,
        encoder=encoder,
    )


def _score_bpe(
    settings: Settings,
    tokens: list[str],
    control: frozenset[int],
    user_defined: set[int],
    space_prefix: bool,
) -> sentencepiece.ScoreBPE:
    scores = settings.items("tokenizer.ggml.scores", float)
    if len(scores) != len(tokens):
        raise CheckpointError(f"{settings.path}: {len(tokens)} tokens but {len(scores)} scores")
    if any(map(math.isnan, scores)):
        raise CheckpointError(f"{settings.path}: tokenizer.ggml.scores holds NaN")
    texts = [token.replace(sentencepiece.SPACE, " ") for token in tokens]
    return sentencepiece.ScoreBPE(texts, scores, control, user_defined, space_prefix)


def _token_id(settings: Settings, name: str, vocab: int) -> int | None:
    token = settings.optional(name, int)
    if token is not None and not 0 <= token < vocab:
        raise CheckpointError(
            f"{settings.path}: {name} is {token}, expected 0 to {vocab - 1}, "
            f"because there are {vocab} tokens"
        )
    return token


def _pre(settings: Settings) -> str:
    """The name of the patterns that split a text. Old files lack it; llama.cpp does the same."""
    pre = settings.optional("tokenizer.ggml.pre", str)
    if pre is None:
        pre = "default"
        warnings.warn(
            f"{settings.path}: tokenizer.ggml.pre is missing, so texts are split by the patterns "
            f"{pre!r}; ids may differ from those that the model was trained on. Convert the model "
            "again with a newer llama.cpp",
            stacklevel=4,  # the caller of load_tokenizer
        )
    return pre
