"""A GGUF file's tables: those that cannot be used, damaged ones, and a trained model's."""

from __future__ import annotations

import numpy as np
import pytest
from tiny_model import finish
from tiny_tokenizer import CORPUS, NORMAL, byte_level_tables, write_tables

from adamas_core.llama import CheckpointError, fetch, load_tokenizer

gguf = pytest.importorskip("gguf", reason='needs the extra "llama"')
tokenizers = pytest.importorskip("tokenizers", reason='needs the extra "llama"')


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({"tokenizer_pre": "mystery", "token_merges": []}, "pre-tokenizer 'mystery' is not one of"),
        ({"tokenizer_pre": "smollm", "token_merges": []}, r"tokenizer\.ggml\.merges is missing"),
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


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tokens": [1, 2, 3]}, r"tokenizer\.ggml\.tokens\[0\] is 1, expected str"),
        ({"token_type": [0.5] * 3}, r"tokenizer\.ggml\.token_type\[0\] is 0.5, expected int"),
        ({"merges": [1]}, r"tokenizer\.ggml\.merges\[0\] is 1, expected str"),
        ({"merges": ["a b c"]}, r"tokenizer\.ggml\.merges"),
        ({"merges": ["ab"]}, r"tokenizer\.ggml\.merges"),
        ({"bos_token_id": "1"}, "bos_token_id is '1', expected int"),
        ({"eos_token_id": 1.5}, "eos_token_id is 1.5, expected int"),
        ({"pre": 5}, r"tokenizer\.ggml\.pre is 5, expected str"),
        ({"add_bos_token": 5}, "add_bos_token is 5, expected bool"),
        ({"model": ["gpt2"]}, r"tokenizer\.ggml\.model is \['gpt2'\], expected str"),
        ({"model": "llama", "scores": [float("nan")] * 3}, "scores holds NaN"),
        ({"model": "llama", "scores": [1, 2, 3]}, r"scores\[0\] is 1, expected float"),
        ({"model": "llama", "scores": [1.0]}, "3 tokens but 1 scores"),
    ],
)
def test_a_value_of_another_type_is_named(change, message, tmp_path):
    values = {"model": "gpt2", "pre": "gpt-2", "tokens": ["a", "b", "ab"], "merges": ["a b"]}
    writer = gguf.GGUFWriter(tmp_path / "x.gguf", "llama")
    for name, value in (values | change).items():
        writer.add_key_value(f"tokenizer.ggml.{name}", value, gguf.GGUFValueType.get_type(value))
    path = finish(writer, tmp_path / "x.gguf")
    with pytest.raises(CheckpointError, match=message) as error:
        load_tokenizer(path)
    assert str(path) in str(error.value)


def test_a_file_without_the_name_of_its_patterns_takes_the_default_one(tmp_path):
    tokens, types, merges = byte_level_tables()
    paths = [tmp_path / "with", tmp_path / "without"]
    write_tables(paths[0], "gpt2", tokens, types, token_merges=merges, tokenizer_pre="default")
    write_tables(paths[1], "gpt2", tokens, types, token_merges=merges)
    expected = load_tokenizer(paths[0])
    with pytest.warns(UserWarning, match=r"without: tokenizer\.ggml\.pre is missing") as caught:
        found = load_tokenizer(paths[1])
    assert caught[0].filename == __file__
    for text in CORPUS:
        assert found.encode(text) == expected.encode(text)


def test_a_file_of_single_letters_needs_no_merges(tmp_path):
    letters = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    path = write_tables(tmp_path / "x", "gpt2", letters, [NORMAL] * 256, tokenizer_pre="gpt-2")
    tokenizer = load_tokenizer(path)
    assert tokenizer.decode(tokenizer.encode("hello 12")) == "hello 12"
