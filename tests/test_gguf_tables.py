"""A GGUF file's tables: those that cannot be used, damaged ones, and a trained model's."""

from __future__ import annotations

import numpy as np
import pytest
from tiny_tokenizer import NORMAL, byte_level_tables, write_tables

from adamas_core.llama import CheckpointError, fetch, load_tokenizer

pytest.importorskip("gguf", reason='needs the extra "llama"')
pytest.importorskip("tokenizers", reason='needs the extra "llama"')


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({"tokenizer_pre": "mystery", "token_merges": []}, "pre-tokenizer 'mystery' is not one of"),
        ({"token_merges": []}, r"tokenizer\.ggml\.merges is missing"),
        ({"tokenizer_pre": "gpt-2"}, r"tokenizer\.ggml\.merges is missing"),
        ({"tokenizer_pre": "gpt-2", "token_merges": ["x y"]}, r"tokenizer\.ggml\.merges"),
        (
            {"tokenizer_pre": "gpt-2", "token_merges": ["a b"], "bos_token_id": 9},
            "bos_token_id is 9",
        ),
    ],
)
def test_tables_that_cannot_be_used_are_a_clear_error(extra, message, tmp_path):
    path = write_tables(tmp_path / "x", "gpt2", ["a", "b", "ab"], [NORMAL] * 3, **extra)
    with pytest.raises(CheckpointError, match=message) as error:
        load_tokenizer(path)
    assert str(path) in str(error.value)


def test_another_kind_of_tokenizer_is_named(tmp_path):
    path = write_tables(tmp_path / "x", "t5", ["a"], [NORMAL])
    with pytest.raises(CheckpointError, match="'t5' is not gpt2 or llama"):
        load_tokenizer(path)


@pytest.mark.parametrize("place", [4, 30, 500, 2000])
def test_damaged_tables_are_a_clear_error_or_other_tables(place, tmp_path):
    tokens, types, merges = byte_level_tables()
    path = write_tables(
        tmp_path / "x", "gpt2", tokens, types, token_merges=merges, tokenizer_pre="gpt-2"
    )
    whole = path.read_bytes()
    for value in np.random.default_rng(place).integers(0, 256, 8):
        data = bytearray(whole)
        data[place] = value
        path.write_bytes(data)
        try:
            load_tokenizer(path)
        except CheckpointError as error:
            assert str(path) in str(error)


@pytest.mark.model
def test_smollm2_tokens():
    tokenizer = load_tokenizer(fetch.fetch(fetch.MODELS[fetch.DEFAULT]))
    assert tokenizer.encode("Hello world! 123") == [19556, 905, 17, 216, 33, 34, 35]
