"""Normalizers of a tokenizer.json that ask for memory are refused; those of real models pass."""

from __future__ import annotations

import base64
import json
import struct
from pathlib import Path

import pytest
from tiny_tokenizer import byte_level_json

from adamas_core.llama import CheckpointError, load_tokenizer
from adamas_core.llama.tokenizers.normalizer import check_normalizer

pytest.importorskip("tokenizers", reason='needs the extra "llama"')


def replace(pattern, content, kind="String"):
    return {"type": "Replace", "pattern": {kind: pattern}, "content": content}


def sequence(*steps):
    return {"type": "Sequence", "normalizers": list(steps)}


def charsmap(size, data=b""):
    table = struct.pack("<I", size) + data
    return {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(table).decode()}


@pytest.mark.parametrize(
    ("normalizer", "message"),
    [
        (charsmap(2**32 - 1), "precompiled_charsmap asks for 4294967295 bytes, and has 0"),
        (sequence(sequence(charsmap(9, b"12345678"))), "asks for 9 bytes, and has 8"),
        (sequence(*[replace("a", "a" * 1000)] * 3), "1000000000 times as long"),
        (replace(" {2,}", "x" * 101, "Regex"), "101 times as long"),
    ],
)
def test_a_normalizer_that_asks_for_memory_is_refused(normalizer, message, tmp_path):
    spec = byte_level_json() | {"normalizer": normalizer}
    (tmp_path / "tokenizer.json").write_text(json.dumps(spec))
    with pytest.raises(CheckpointError, match=message) as error:
        load_tokenizer(tmp_path)
    assert str(tmp_path / "tokenizer.json") in str(error.value)


@pytest.mark.parametrize(
    "normalizer",
    [
        None,
        {"type": "NFC"},
        sequence({"type": "Prepend", "prepend": "▁"}, replace(" ", "▁")),
        sequence(replace("``", '"'), replace(" {2,}", "▁", "Regex"), charsmap(8, b"12345678")),
        replace("abcd", "x" * 300),
        5,
        {"type": "Precompiled", "precompiled_charsmap": 5},
        {"type": "Replace", "pattern": 5, "content": 5},
        {"type": "Replace", "pattern": {"String": 5}, "content": "a"},
        {"type": {"type": "Replace"}},
        {"type": "Sequence", "normalizers": 5},
    ],
)
def test_other_normalizers_are_left_to_the_package(normalizer):
    check_normalizer(Path("tokenizer.json"), normalizer)
