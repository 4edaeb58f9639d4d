"""A model and its tokenizer for a command."""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path
from typing import Any

import pytest
from tiny_tokenizer import write_folder, write_tables

from adamas_core.cli import loading
from adamas_core.llama import CheckpointError, fetch


@pytest.fixture
def files(letters_model: list[str]) -> tuple[Path, Path]:
    """The paths of a llama2.c model and of its tokenizer."""
    model, tokenizer = (Path(option.partition("=")[2]) for option in letters_model)
    return model, tokenizer


def test_loaded(files: tuple[Path, Path], tmp_path: Path) -> None:
    model, tokenizer = loading.loaded(*files)
    assert model.config.vocab == len(tokenizer.pieces)


def test_a_tokenizer_bin_is_found_beside_its_model(
    files: tuple[Path, Path], tmp_path: Path
) -> None:
    model = shutil.copy(files[0], tmp_path / "m.bin")
    with pytest.raises(ValueError, match=r"tokenizer\.bin is missing.*--tokenizer takes"):
        loading.tokenizer_of(model, None)
    shutil.copy(files[1], tmp_path / "tokenizer.bin")
    assert loading.tokenizer_of(model, None).encode("ab") == [1, 259, 260, 261]


def test_the_tokenizer_of_a_folder(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"tokenizer\.json is missing, .*--tokenizer takes"):
        loading.tokenizer_of(tmp_path, None)
    pytest.importorskip("tokenizers")
    write_folder(tmp_path)
    assert loading.tokenizer_of(tmp_path, None).decode([4]) is not None


def test_a_gguf_file_without_a_tokenizer(tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    path = write_tables(tmp_path / "x.gguf", "none", ["a"], [1])
    with pytest.raises(ValueError, match=r"x\.gguf: .*; --tokenizer takes another tokenizer$"):
        loading.tokenizer_of(path, None)


def test_a_tokenizer_that_was_given_is_the_one(files: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "t.bin").write_bytes(b"1234567")
    with pytest.raises(CheckpointError, match=r"t\.bin: [^;]*$"):
        loading.tokenizer_of(files[0], tmp_path / "t.bin")


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


def test_contexts_are_checked_before_a_download(out_of: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(fetch, "fetch", lambda model: pytest.fail("a download"))
    for options, told in (
        (["--context=9000"], "9000 is more than the 8192 of the model SmolLM2-135M"),
        (
            ["--model=gemma3-270m", "--contexts", "9000", "40000"],
            "40000 is more than the 32768 of the model Gemma 3 270M",
        ),
    ):
        status, _, error = out_of("compare", *options)
        assert status == 2
        assert told in error


def test_demo_checks_its_context_before_a_download(out_of: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(fetch, "fetch", lambda model: pytest.fail("a download"))
    status, _, error = out_of("demo", "--tokens=9000")
    assert (status, error) == (2, "adamas-core demo: --tokens: 9000; expected 256 to 8192\n")
    assert "expected 256 to 32768" in out_of("demo", "--model=gemma3-270m", "--tokens=99999")[2]
