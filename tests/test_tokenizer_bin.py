"""llama2.c's tokenizer.bin: the ids of the GGUF tables, cut files, and a trained one."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_model import MODELS, needs_models
from tiny_tokenizer import plain, text, write_tokenizer_bin

from adamas_core.llama import CheckpointError, load_tokenizer


@pytest.fixture(scope="module")
def llama2c(tmp_path_factory):
    return write_tokenizer_bin(tmp_path_factory.mktemp("llama2c") / "tok.bin")


@given(st.text(alphabet="abc 2éê\n🙂"))
@plain
def test_llama2c_gives_the_ids_of_the_gguf(llama2c, score_bpe, text):
    tokenizer = load_tokenizer(llama2c)
    assert tokenizer.encode(text) == score_bpe.encode(text)
    assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize("size", [0, 3, 4, 9, 100, -1])
def test_a_cut_llama2c_tokenizer_is_a_clear_error(llama2c, size, tmp_path):
    path = tmp_path / "cut.bin"
    path.write_bytes(llama2c.read_bytes()[:size])
    with pytest.raises(CheckpointError) as error:
        load_tokenizer(path)
    assert str(path) in str(error.value)


@pytest.mark.model
@needs_models
@given(text=text)
@plain
def test_a_trained_tokenizer_round_trips(text):
    tokenizer = load_tokenizer(MODELS / "tok512.bin")
    assert tokenizer.decode(tokenizer.encode(text, special=False)) == text


def bin_of(path, texts, scores=None):
    with path.open("wb") as file:
        file.write(struct.pack("<i", 7))
        for text, score in zip(texts, scores or [0.0] * len(texts), strict=True):
            file.write(struct.pack("<fi", score, len(text.encode())) + text.encode())
    return path


NAMES = ["<unk>", "\n<s>\n", "\n</s>\n"]


def test_a_tokenizer_of_characters_needs_no_byte_tokens(tmp_path):
    tokenizer = load_tokenizer(bin_of(tmp_path / "x.bin", [*NAMES, *" abé\n"]))
    assert tokenizer.encode("ab é") == [1, 3, 4, 5, 3, 6]
    assert tokenizer.decode(tokenizer.encode("ab é")) == "ab é"
    with pytest.raises(ValueError, match="no token for '漢'"):
        tokenizer.encode("漢")


@pytest.mark.parametrize(
    ("texts", "scores", "message"),
    [
        (NAMES[:2], None, "2 tokens, expected at least 3"),
        ([*NAMES, "<0x00>", "a"], None, "1 of the 256 byte tokens"),
        ([*NAMES, "a"], [0.0, 0.0, 0.0, float("nan")], "the score of token 3 is NaN"),
    ],
)
def test_a_table_that_cannot_be_used_is_named(texts, scores, message, tmp_path):
    path = bin_of(tmp_path / "x.bin", texts, scores)
    with pytest.raises(CheckpointError, match=message) as error:
        load_tokenizer(path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize("size", [-1, -(2**31), 2**31 - 1, 6])
def test_a_length_that_the_file_does_not_hold_is_named(size, tmp_path):
    path = bin_of(tmp_path / "x.bin", NAMES)
    path.write_bytes(path.read_bytes() + struct.pack("<fi", 0, size) + b"abc")
    with pytest.raises(CheckpointError, match=f"token 3 is {size} bytes long"):
        load_tokenizer(path)
