"""A tokenizer from llama2.c's tokenizer.bin.

The file is the length of the longest token, and then the score, the length and the bytes of each
token.
"""

from __future__ import annotations

import math
import struct
from pathlib import Path

from ..files import regular
from ..settings import CheckpointError
from .sentencepiece import BYTE_NAMES, ScoreBPE, token_bytes
from .tokenizer import Tokenizer

UNKNOWN, BOS, EOS = 0, 1, 2  # by convention; the file does not say


def load(path: Path) -> Tokenizer:
    """The tokenizer of a tokenizer.bin."""
    texts, scores = _tables(path)
    if len(texts) <= EOS:
        raise CheckpointError(
            f"{path}: {len(texts)} tokens, expected at least {EOS + 1}: unknown, BOS and EOS"
        )
    bytes_there = len(BYTE_NAMES.keys() & set(texts))
    if bytes_there not in (0, len(BYTE_NAMES)):  # a tokenizer of characters has none
        raise CheckpointError(f"{path}: cut short: {bytes_there} of the 256 byte tokens are there")
    control = frozenset({UNKNOWN, BOS, EOS})
    return Tokenizer(
        pieces=[
            text.encode() if i in control else token_bytes(text) for i, text in enumerate(texts)
        ],
        control=control,
        bos=BOS,
        eos=EOS,
        adds_bos=True,
        template=None,
        strips_space=True,
        encoder=ScoreBPE(texts, scores, control, (), space_prefix=True),
    )


def _tables(path: Path) -> tuple[list[str], list[float]]:
    """The text and the score of each token."""
    data = regular(path).read_bytes()
    texts: list[str] = []
    scores: list[float] = []
    offset = 4
    try:
        while offset < len(data):
            score, size = struct.unpack_from("<fi", data, offset)
            offset += 8
            if size < 0 or offset + size > len(data):
                raise ValueError(f"token {len(texts)} is {size} bytes long")
            if math.isnan(score):
                raise ValueError(f"the score of token {len(texts)} is NaN")
            texts.append(data[offset : offset + size].decode())
            scores.append(score)
            offset += size
    except (struct.error, ValueError) as error:
        raise CheckpointError(f"{path}: damaged, or cut short: {error}") from error
    return texts, scores
