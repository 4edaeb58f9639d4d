"""A library of the extra "llama" that is missing: the error says how to install it."""

from __future__ import annotations

import sys

import pytest
from tiny_model import CONFIG, FAMILIES, random_weights, shapes, write_gguf, write_huggingface

from adamas_core.llama import load

pytest.importorskip("gguf", reason='needs the extra "llama"')
pytest.importorskip("safetensors", reason='needs the extra "llama"')


@pytest.mark.parametrize(
    ("write", "module"), [(write_gguf, "gguf"), (write_huggingface, "safetensors")]
)
def test_a_missing_extra_says_how_to_install_it(write, module, monkeypatch, tmp_path):
    config = CONFIG | FAMILIES["llama"]
    path = write(tmp_path / "model", config, random_weights(shapes(config)))
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=r'pip install "adamas-core\[llama\]"'):
        load(path)
