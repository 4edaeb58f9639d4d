"""SentencePiece's BPE: the best pair first, and round trips."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_tokenizer import PIECES, SCORES, plain, text


def pieces(tokenizer, text, **options):
    options = {"bos": False} | options
    return [
        PIECES[i - 259] if i >= 259 else f"byte {i - 3}" if i >= 3 else f"control {i}"
        for i in tokenizer.encode(text, **options)
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        ("ab", ["▁ab"]),
        ("abc", ["▁", "abc"]),  # bc goes before ab, and then abc before ▁a
        ("cabc", ["▁", "c", "abc"]),
        ("aaa", ["▁", "aa", "a"]),  # of two equal pairs the left one
        ("ccc", ["▁", "cc", "c"]),
        ("é", ["▁", "é"]),
        ("ê", ["▁", "byte 195", "byte 170"]),
        ("a\n", ["▁a", "byte 10"]),
        ("a a", ["▁a", "▁a"]),
        ("a<tool>a", ["▁a", "<tool>", "a"]),
        ("a<s>a", ["▁a", "control 1", "▁a"]),
        ("<0x41>", ["▁", *[f"byte {b}" for b in b"<0x41>"]]),
    ],
)
def test_score_bpe_merges_the_best_pair_first(score_bpe, text, expected):
    assert pieces(score_bpe, text) == expected


def merge_naively(text):
    """The rule itself: again and again the best pair, the leftmost among equals."""
    score = dict(zip((piece.replace("▁", " ") for piece in PIECES), SCORES, strict=True))
    del score["<tool>"]
    symbols = list(" " + text)
    while True:
        pairs = [(score[a + b], -i) for i, (a, b) in enumerate(pairwise(symbols)) if a + b in score]
        if not pairs:
            return symbols
        i = -max(pairs)[1]
        symbols[i : i + 2] = [symbols[i] + symbols[i + 1]]


@given(st.text(alphabet="abc 2é", min_size=1))
@plain
def test_score_bpe_is_the_plain_rule(score_bpe, text):
    assert [piece.replace("▁", " ") for piece in pieces(score_bpe, text)] == merge_naively(text)


@given(text)
@plain
def test_score_bpe_round_trip(score_bpe, text):
    assert score_bpe.decode(score_bpe.encode(text, special=False)) == text


def test_bos_comes_first(score_bpe):
    assert pieces(score_bpe, "a", bos=None) == ["control 1", "▁a"]
