"""BOS, and the ids that end a turn."""

from __future__ import annotations

import pytest


def test_stop_holds_the_ids_that_end_a_turn(byte_level):
    assert byte_level["smollm"].stop == {0, 2}


def test_bos_is_as_the_model_expects_it(byte_level):
    assert byte_level["llama-bpe"].encode("a")[0] == 1
    assert byte_level["smollm"].encode("a") == byte_level["llama-bpe"].encode("a", bos=False)
    assert byte_level["smollm"].encode("a", bos=True) == byte_level["llama-bpe"].encode("a")


def test_ids_of_a_padded_matrix_have_no_text(byte_level):
    tokenizer = byte_level["smollm"]
    V = len(tokenizer.pieces)
    ids = tokenizer.encode("the cat")
    with pytest.raises(ValueError, match=f"token id {V} is not in the table"):
        tokenizer.decode([V])
    padded = tokenizer.padded(V + 3)
    assert padded.decode([V, *ids, V + 2]) == "the cat"
    assert padded.encode("the cat") == ids
    with pytest.raises(ValueError, match=f"token id {V + 3} is not in the table"):
        padded.decode([V + 3])
    assert len(tokenizer.padded(V - 1).pieces) == V
