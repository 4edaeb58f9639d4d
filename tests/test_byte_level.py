"""Byte-level BPE: round trips, and how each model splits a text."""

from __future__ import annotations

import pytest
from hypothesis import given
from tiny_tokenizer import NORMAL, byte_level_tables, plain, text, write_tables

from adamas_core.llama import load_tokenizer
from adamas_core.llama.tokenizers.byte_level import PATTERNS

pytest.importorskip("gguf", reason='needs the extra "llama"')
library = pytest.importorskip("tokenizers", reason='needs the extra "llama"')


def cut(tokenizer, text):
    """The text of each token."""
    return [tokenizer.pieces[i].decode() for i in tokenizer.encode(text, bos=False)]


@given(text)
@plain
def test_byte_level_round_trip(byte_level, text):
    for pre, tokenizer in byte_level.items():
        if pre not in ("qwen2", "deepseek-r1-qwen"):  # their NFC may rewrite a text
            assert (
                tokenizer.decode(tokenizer.encode(text), special=True).removeprefix(
                    "<|im_start|>" if tokenizer.adds_bos else ""
                )
                == text
            )


def test_each_model_splits_digits_in_its_own_way(byte_level):
    longest = {
        pre: max(map(len, cut(tokenizer, "a 12345"))) for pre, tokenizer in byte_level.items()
    }
    assert longest["smollm"] == longest["qwen2"] == 1
    assert longest["llama-bpe"] == longest["default"] == 3
    assert longest["gpt-2"] == len(" 12345")


def test_smollm_splits_a_space_from_a_digit(byte_level):
    assert cut(byte_level["smollm"], "in 2024")[-5:] == [" ", "2", "0", "2", "4"]
    assert cut(byte_level["gpt-2"], "in 2024")[-1] == " 2024"


def test_contractions_in_capitals(byte_level):
    """Llama 3 and Qwen2 know 'LL; GPT-2's pattern knows 'll alone."""
    pre_tokenize = {}
    for pre in ("gpt-2", "llama-bpe"):
        split = library.pre_tokenizers.Split(library.Regex(PATTERNS[pre][0]), "isolated")
        pre_tokenize[pre] = [piece for piece, _ in split.pre_tokenize_str("it'LL be")]
    assert pre_tokenize["gpt-2"] == ["it", "'", "LL", " be"]
    assert pre_tokenize["llama-bpe"] == ["it", "'LL", " be"]


def test_llama3_takes_a_whole_word_before_any_merge(tmp_path):
    tokens, types, merges = byte_level_tables()
    tokens, types = [*tokens, "Ġxyz"], [*types, NORMAL]  # a token that no merge makes
    found = {}
    for pre in ("llama-bpe", "gpt-2"):
        path = write_tables(
            tmp_path / pre, "gpt2", tokens, types, token_merges=merges, tokenizer_pre=pre
        )
        found[pre] = cut(load_tokenizer(path), "a xyz")
    assert found["llama-bpe"] == ["a", " xyz"]
    assert len(found["gpt-2"]) > 2


def test_qwen_composes_characters(byte_level):
    tokenizer = byte_level["qwen2"]
    assert tokenizer.encode("e\u0301") == tokenizer.encode("\u00e9")
