"""A tokenizer from tokenizer.json and the files beside it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ...extra import needs_extra
from ..files import regular
from ..json_file import read_json
from ..library_errors import library_errors
from ..settings import CheckpointError, Settings
from . import byte_level, sentencepiece
from .library_encoder import library_encoder
from .normalizer import check_normalizer, steps
from .tokenizer import Tokenizer

MAX_ADDED = 100  # tokens; real models add one or two
MAX_ID = 2**24 - 1  # a table of the ids takes 8 bytes for each, also in a gap


def load(path: Path) -> Tokenizer:
    """The tokenizer of a tokenizer.json.

    The names of BOS and EOS come from tokenizer_config.json. The chat template comes from
    chat_template.jinja or, in older folders, from tokenizer_config.json.
    """
    spec = read_json(path)
    tokenizer = _library_tokenizer(path, spec)
    token_bytes, strips_space = _decoder(path, spec)
    added = tokenizer.get_added_tokens_decoder()
    config_path = path.with_name("tokenizer_config.json")
    config = Settings(config_path, (read_json(config_path) if config_path.exists() else {}).get)
    bos = _named_token(tokenizer, config, "bos_token")
    return Tokenizer(
        pieces=_pieces(path, tokenizer, token_bytes),
        control=frozenset(i for i, token in added.items() if token.special),
        bos=bos,
        eos=_named_token(tokenizer, config, "eos_token"),
        adds_bos=bos is not None and _first_id(path, tokenizer) == bos,
        template=_template(path, config),
        strips_space=strips_space,
        encoder=library_encoder(path, tokenizer),
    )


def _library_tokenizer(path: Path, spec: dict[str, Any]) -> Any:
    """The tokenizer of the `tokenizers` package, without padding or truncation."""
    lib = needs_extra("tokenizers")
    model = spec.get("model")
    if isinstance(model, dict) and model.get("continuing_subword_prefix"):
        raise CheckpointError(f"{path}: model.continuing_subword_prefix is not supported")
    check_normalizer(path, spec.get("normalizer"))
    _check_byte_levels(path, spec.get("pre_tokenizer"))
    with library_errors(f"{path}: not a tokenizer.json"):
        tokenizer = lib.Tokenizer.from_str(json.dumps(spec))
        tokenizer.no_padding()
        tokenizer.no_truncation()
    return tokenizer


def _check_byte_levels(path: Path, pre_tokenizer: object) -> None:
    """Reject several byte-level steps: each makes two bytes of one, so the text grows to 2^n."""
    steps = json.dumps(pre_tokenizer).count('"ByteLevel"')
    if steps > 1:
        raise CheckpointError(
            f"{path}: pre_tokenizer has {steps} byte-level steps, expected at most one"
        )


def _pieces(path: Path, tokenizer: Any, token_bytes: Callable[[str], bytes]) -> list[bytes]:
    """The bytes of each id, and none for an id in a gap."""
    ids = tokenizer.get_vocab()
    last = max(ids.values(), default=-1)
    if last > MAX_ID:
        raise CheckpointError(f"{path}: the id {last} is damaged, expected at most {MAX_ID}")
    pieces = [b""] * (last + 1)
    added = tokenizer.get_added_tokens_decoder()
    for token, i in ids.items():
        pieces[i] = token.encode() if i in added else token_bytes(token)
    return pieces


def _decoder(path: Path, spec: dict[str, Any]) -> tuple[Callable[[str], bytes], bool]:
    """The function from a token to its bytes, and whether decoding removes a first space."""
    decoders = {str(step.get("type")): step for step in steps(spec.get("decoder"), "decoders")}
    if "ByteLevel" in decoders:
        return byte_level.token_bytes, False
    if "Metaspace" in decoders:
        return sentencepiece.token_bytes, decoders["Metaspace"].get("prepend_scheme") != "never"
    if "ByteFallback" in decoders:
        return sentencepiece.token_bytes, "Strip" in decoders
    raise CheckpointError(f"{path}: its decoder is neither byte-level nor SentencePiece's")


def _named_token(tokenizer: Any, config: Settings, name: str) -> int | None:
    """The id of a token that tokenizer_config.json names, as text or as {"content": text}."""
    if isinstance(config.lookup(name), dict):
        text = config.section(name).get("content", str)
    else:
        text = config.get(name, str, "")
    found: int | None = tokenizer.token_to_id(text) if text else None
    return found


def _first_id(path: Path, tokenizer: Any) -> int | None:
    """The id that the post-processor puts before a text."""
    with library_errors(f"{path}: this tokenizer cannot encode a text"):
        added = tokenizer.num_special_tokens_to_add(is_pair=False)
        if added > MAX_ADDED:
            raise CheckpointError(
                f"{path}: post_processor adds {added} tokens to a text, "
                f"expected at most {MAX_ADDED}"
            )
        ids: list[int] = tokenizer.encode("").ids
    return ids[0] if ids else None


def _template(path: Path, config: Settings) -> str | None:
    """The chat template of the model, in Jinja. A list of several templates is not read."""
    jinja = path.with_name("chat_template.jinja")
    if not jinja.exists():
        given = config.lookup("chat_template")
        return None if isinstance(given, list) else config.optional("chat_template", str)
    try:
        return regular(jinja).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{jinja}: damaged: {error}") from error
