"""GGUF files that hold only a part of a model, and files of another kind."""

from __future__ import annotations

import pytest
from tiny_model import CONFIG, FAMILIES, write_gguf

from adamas_core.llama import CheckpointError
from adamas_core.llama.gguf_file import is_gguf, open_gguf

pytest.importorskip("gguf", reason='needs the extra "llama"')


def test_one_part_of_several_is_refused(tmp_path):
    path = write_gguf(tmp_path / "x.gguf", CONFIG | FAMILIES["llama"], {}, extra={"split.count": 3})
    with pytest.raises(CheckpointError, match="one part of several") as error:
        open_gguf(path)
    assert str(path) in str(error.value)


def test_a_file_is_known_by_its_first_bytes(tmp_path):
    path = write_gguf(tmp_path / "x.bin", CONFIG | FAMILIES["llama"], {})
    assert is_gguf(path)
    (tmp_path / "x.gguf").write_bytes(path.read_bytes()[1:])
    assert not is_gguf(tmp_path / "x.gguf")
