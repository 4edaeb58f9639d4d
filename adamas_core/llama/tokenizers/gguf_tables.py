"""A tokenizer from the tables of a GGUF file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ..gguf_file import open_gguf
from ..settings import CheckpointError, Settings
from . import byte_level, sentencepiece
from .library_encoder import library_encoder
from .tokenizer import Tokenizer

# Values of tokenizer.ggml.token_type.
NORMAL, UNKNOWN, CONTROL, USER_DEFINED = 1, 2, 3, 4


def load(path: Path) -> Tokenizer:
    """The tokenizer of a GGUF file."""
    _, settings = open_gguf(path)
    kind = settings.get("tokenizer.ggml.model", str)
    tokens = settings.get("tokenizer.ggml.tokens", list)
    types = settings.get("tokenizer.ggml.token_type", list, [NORMAL] * len(tokens))
    if len(types) != len(tokens):
        raise CheckpointError(f"{path}: {len(tokens)} tokens but {len(types)} token types")
    control = frozenset(i for i, t in enumerate(types) if t in (UNKNOWN, CONTROL))
    atoms = {i for i, t in enumerate(types) if t == USER_DEFINED} | control
    token_bytes: Callable[[str], bytes]
    encoder: Callable[[str, bool], list[int]]
    if kind == "gpt2":
        pre = settings.get("tokenizer.ggml.pre", str)
        library = byte_level.byte_level_bpe(settings, pre, tokens, control, atoms)
        encoder = library_encoder(library)
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
        template=settings.lookup("tokenizer.chat_template"),
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
    scores = settings.get("tokenizer.ggml.scores", list)
    if len(scores) != len(tokens):
        raise CheckpointError(f"{settings.path}: {len(tokens)} tokens but {len(scores)} scores")
    texts = [token.replace(sentencepiece.SPACE, " ") for token in tokens]
    return sentencepiece.ScoreBPE(texts, scores, control, user_defined, space_prefix)


def _token_id(settings: Settings, name: str, vocab: int) -> int | None:
    token = settings.lookup(name)
    if token is not None and not 0 <= token < vocab:
        raise CheckpointError(
            f"{settings.path}: {name} is {token}, expected 0 to {vocab - 1}, "
            f"because there are {vocab} tokens"
        )
    return token if token is None else int(token)
