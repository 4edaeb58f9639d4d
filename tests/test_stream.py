"""Text from ids as they come: never half a character, and the space before a text."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_tokenizer import plain, text


@given(text, st.data())
@plain
def test_a_stream_joins_to_the_text_and_never_cuts_a_character(byte_level, text, data):
    tokenizer = byte_level["smollm"]
    stream = tokenizer.stream(special=True)
    parts = [stream.push(i) for i in tokenizer.encode(text)]
    assert "".join(parts) == text
    assert stream.end() == ""
    if "\ufffd" not in text:
        assert not any("\ufffd" in part for part in parts)


def test_a_character_of_several_tokens_comes_with_its_last(byte_level):
    tokenizer = byte_level["smollm"]
    ids = tokenizer.encode("🙂")
    assert len(ids) == 4
    stream = tokenizer.stream()
    assert [stream.push(i) for i in ids] == ["", "", "", "🙂"]
    assert stream.push(ids[0]) == ""
    assert stream.end() == "\ufffd"


def test_a_control_token_ends_a_character_that_never_came_whole(byte_level):
    tokenizer = byte_level["smollm"]
    first = tokenizer.encode("🙂")[0]
    assert tokenizer.decode([first, 2, *tokenizer.encode("a")]) == "\ufffda"


@pytest.mark.parametrize("token", [-1, 10**6])
def test_an_id_out_of_range_is_an_error(byte_level, token):
    with pytest.raises(ValueError, match="token id"):
        byte_level["smollm"].decode([token])


def test_a_continued_text_keeps_its_space(score_bpe):
    first, second = score_bpe.encode("a a", bos=False)
    assert score_bpe.decode([1, first, second]) == "a a"
    stream = score_bpe.stream()
    assert [stream.push(first), stream.push(second)] == [" a", " a"]
    stream = score_bpe.stream(start=True)
    assert [stream.push(1), stream.push(first), stream.push(second)] == ["", "a", " a"]
