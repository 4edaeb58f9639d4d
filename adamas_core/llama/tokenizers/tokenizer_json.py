"""A tokenizer from tokenizer.json and the files beside it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..extra import needs_extra
from ..json_file import read_json
from ..settings import CheckpointError
from . import byte_level, sentencepiece
from .library_encoder import library_encoder
from .tokenizer import Tokenizer


def load(path: Path) -> Tokenizer:
    """The tokenizer of a tokenizer.json.

    The names of BOS and EOS come from tokenizer_config.json. The chat template comes from
    chat_template.jinja or, in older folders, from tokenizer_config.json.
    """
    spec = read_json(path)
    tokenizer = _library_tokenizer(path, spec)
    token_bytes, strips_space = _decoder(path, spec)
    added = {a["id"]: a for a in spec.get("added_tokens") or []}
    pieces = []
    for i in range(max(tokenizer.get_vocab().values(), default=-1) + 1):
        token = tokenizer.id_to_token(i) or ""  # ids may have gaps
        pieces.append(added[i]["content"].encode() if i in added else token_bytes(token))

    config_path = path.with_name("tokenizer_config.json")
    config = read_json(config_path) if config_path.is_file() else {}
    jinja = path.with_name("chat_template.jinja")
    template = jinja.read_text(encoding="utf-8") if jinja.is_file() else config.get("chat_template")
    bos = _named_token(tokenizer, config.get("bos_token"))
    return Tokenizer(
        pieces=pieces,
        control=frozenset(i for i, a in added.items() if a["special"]),
        bos=bos,
        eos=_named_token(tokenizer, config.get("eos_token")),
        adds_bos=bos is not None and tokenizer.encode("").ids[:1] == [bos],
        template=template if isinstance(template, str) else None,
        strips_space=strips_space,
        encoder=library_encoder(tokenizer),
    )


def _library_tokenizer(path: Path, spec: dict[str, Any]) -> Any:
    """The tokenizer of the `tokenizers` package, without padding or truncation."""
    lib = needs_extra("tokenizers")
    try:
        tokenizer = lib.Tokenizer.from_str(json.dumps(spec))
    except Exception as error:  # the package raises bare Exception
        raise CheckpointError(f"{path}: not a tokenizer.json: {error}") from error
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def _decoder(path: Path, spec: dict[str, Any]) -> tuple[Callable[[str], bytes], bool]:
    """The function from a token to its bytes, and whether decoding removes a first space."""
    whole = spec.get("decoder") or {}
    decoders = {step.get("type"): step for step in whole.get("decoders", [whole])}
    if "ByteLevel" in decoders:
        return byte_level.token_bytes, False
    if "Metaspace" in decoders:
        return sentencepiece.token_bytes, decoders["Metaspace"].get("prepend_scheme") != "never"
    if "ByteFallback" in decoders:
        return sentencepiece.token_bytes, "Strip" in decoders
    raise CheckpointError(f"{path}: its decoder is neither byte-level nor SentencePiece's")


def _named_token(tokenizer: Any, token: Any) -> int | None:
    """The id of a token that tokenizer_config.json names, as text or as {"content": text}."""
    name = token.get("content") if isinstance(token, dict) else token
    found: int | None = tokenizer.token_to_id(name) if name else None
    return found
