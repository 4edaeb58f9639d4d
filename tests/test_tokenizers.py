"""The kind of a tokenizer is picked by its file."""

from __future__ import annotations

import pytest

from adamas_core.llama import CheckpointError, load_tokenizer


def test_another_kind_of_file_is_a_clear_error(tmp_path):
    path = tmp_path / "x.txt"
    path.write_text("hello")
    with pytest.raises(CheckpointError, match="not a tokenizer that can be read"):
        load_tokenizer(path)
