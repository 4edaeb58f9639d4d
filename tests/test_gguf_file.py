"""GGUF files, and files of another kind."""

from __future__ import annotations

import pytest
from tiny_model import CONFIG, FAMILIES, write_gguf

from adamas_core.llama.gguf_file import is_gguf

pytest.importorskip("gguf", reason='needs the extra "llama"')


def test_a_file_is_known_by_its_first_bytes(tmp_path):
    path = write_gguf(tmp_path / "x.bin", CONFIG | FAMILIES["llama"], {})
    assert is_gguf(path)
    (tmp_path / "x.gguf").write_bytes(path.read_bytes()[1:])
    assert not is_gguf(tmp_path / "x.gguf")
