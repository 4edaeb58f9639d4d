"""Control tokens and user-defined tokens in a text."""

from __future__ import annotations


def test_control_tokens_are_one_id_unless_told_otherwise(byte_level):
    tokenizer = byte_level["smollm"]
    ids = tokenizer.encode("<|im_start|>the<|im_end|>")
    assert (ids[0], ids[-1]) == (1, 2)
    assert tokenizer.decode(ids) == "the"
    assert tokenizer.decode(ids, special=True) == "<|im_start|>the<|im_end|>"
    spelled = tokenizer.encode("<|im_start|>the<|im_end|>", special=False)
    assert not tokenizer.control & set(spelled)
    assert tokenizer.decode(spelled) == "<|im_start|>the<|im_end|>"


def test_user_defined_tokens_are_text(byte_level):
    tokenizer = byte_level["smollm"]
    for special in (True, False):
        assert tokenizer.encode("<think>", special=special) == [3]
    assert tokenizer.decode([3]) == "<think>"
