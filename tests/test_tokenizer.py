"""BOS, and the ids that end a turn."""

from __future__ import annotations


def test_stop_holds_the_ids_that_end_a_turn(byte_level):
    assert byte_level["smollm"].stop == {0, 2}


def test_bos_is_as_the_model_expects_it(byte_level):
    assert byte_level["llama-bpe"].encode("a")[0] == 1
    assert byte_level["smollm"].encode("a") == byte_level["llama-bpe"].encode("a", bos=False)
    assert byte_level["smollm"].encode("a", bos=True) == byte_level["llama-bpe"].encode("a")
