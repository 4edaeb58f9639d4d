"""llama2.c's tokenizer.bin: the ids of the GGUF tables, cut files, and a trained one."""

from __future__ import annotations

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
