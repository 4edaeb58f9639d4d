"""Windows of texts."""

from __future__ import annotations

import pytest

from adamas_core.lab.texts import digest, middle, named


def test_windows_of_all_contexts_end_at_the_same_token() -> None:
    class Letters:
        adds_bos, bos = False, None

        def encode(self, text: str, bos: bool, special: bool) -> list[int]:
            return [ord(letter) for letter in text]

    found = middle("t", "".join(map(chr, range(100))), Letters(), [10, 20])  # type: ignore[arg-type]
    assert found[20] == list(range(29, 50))
    assert found[10] == list(range(39, 50))
    assert middle("t", "abcdefgh", Letters(), [7])[7] == [ord(x) for x in "abcdefgh"]  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="the text t has 8 tokens; a context of 8 needs 9"):
        middle("t", "abcdefgh", Letters(), [8])  # type: ignore[arg-type]
    for name in ("pydoc", "source", "passkeys"):
        if name != "passkeys":
            windows = named(name).windows(Letters(), [300, 4000])  # type: ignore[arg-type]
            assert windows[300] == windows[4000][-301:]
        else:
            windows = named(name).windows(Letters(), [3000, 4000])  # type: ignore[arg-type]
        assert all(len(tokens) == context + 1 for context, tokens in windows.items())
    text = "".join(map(chr, windows[4000]))
    for part in text.split("What is the pass key of ")[1:]:
        name, rest = part.split("?", 1)
        key = rest.split(" is ")[1].split(".")[0]
        assert text.index(f"The pass key of {name} is {key}. ") < text.index("What is the pass")


def test_a_window_begins_with_bos_if_the_model_expects_it() -> None:
    class Expecting:
        adds_bos, bos = True, 1

        def encode(self, text: str, bos: bool, special: bool) -> list[int]:
            return [ord(letter) for letter in text]

    windows = named("source").windows(Expecting(), [300, 4000])  # type: ignore[arg-type]
    assert windows[300][0] == windows[4000][0] == 1
    assert windows[300][1:] == windows[4000][-300:]


def test_digest() -> None:
    assert digest([1, 2, 3]) == digest([1, 2, 3]) != digest([1, 2, 4])
