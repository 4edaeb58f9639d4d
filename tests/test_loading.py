"""The option --model: a path, or the name of a model that is fetched."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pytest

from adamas_core.cli import compare, loading
from adamas_core.llama import fetch


def test_a_name_is_a_model_to_fetch_unless_a_file_has_it(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    assert loading.model_name("gemma3-270m") is fetch.MODELS["gemma3-270m"]
    (tmp_path / "gemma3-270m").write_bytes(b"")
    assert loading.model_name("gemma3-270m") == Path("gemma3-270m")
    with pytest.raises(argparse.ArgumentTypeError, match="No such file"):
        loading.model_name("gemma3")


def test_only_a_name_is_fetched(monkeypatch: Any) -> None:
    monkeypatch.setattr(fetch, "fetch", lambda model: Path(model.file))
    assert loading.fetched(Path("x")) == Path("x")
    assert loading.fetched(fetch.MODELS["gemma3-270m"]) == Path("gemma-3-270m-q4_k_m.gguf")


def test_contexts_are_checked_before_a_download(monkeypatch: Any) -> None:
    monkeypatch.setattr(fetch, "fetch", lambda model: pytest.fail("a download"))
    with pytest.raises(ValueError, match="9000 is more than the 8192 of the model SmolLM2-135M"):
        compare.fitting(fetch.MODELS[fetch.DEFAULT], [9000])
    with pytest.raises(ValueError, match="40000 is more than the 32768 of the model Gemma 3 270M"):
        compare.fitting(fetch.MODELS["gemma3-270m"], [9000, 40000])


def test_demo_checks_its_context_before_a_download(out_of: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(fetch, "fetch", lambda model: pytest.fail("a download"))
    status, _, error = out_of("demo", "--tokens=9000")
    assert (status, error) == (2, "adamas-core demo: --tokens: 9000; expected 256 to 8192\n")
    assert "expected 256 to 32768" in out_of("demo", "--model=gemma3-270m", "--tokens=99999")[2]
