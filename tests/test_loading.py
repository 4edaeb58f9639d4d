"""A model and its tokenizer for a command."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from tiny_tokenizer import write_folder, write_tables

from adamas_core.cli import loading
from adamas_core.llama import CheckpointError


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
