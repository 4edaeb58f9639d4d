"""The standard streams of a command: closed, full, or with a small encoding."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from adamas_core.cli import streams

ROOT = Path(__file__).parent.parent


def shell(command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a line of bash in which $ADAMAS is the command."""
    return subprocess.run(
        ["bash", "-c", command],
        env={**os.environ, "ADAMAS": f"{sys.executable} -m adamas_core", **environment},
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )


@pytest.mark.parametrize("arguments", ["info", "--help", "compare --help", "--version"])
def test_a_reader_that_has_gone(arguments: str) -> None:
    # The reader ends before the command starts to write.
    run = shell(f"( sleep 0.5; $ADAMAS {arguments}; echo $? >&3 ) 3>&2 | true")
    assert run.stderr == "141\n"


def test_a_reader_that_goes_while_text_is_generated(letters_model: list[str]) -> None:
    model = " ".join(letters_model)
    run = shell(f"$ADAMAS generate {model} --prompt hi --max-tokens 200 | head -c 1; "
                "exit ${PIPESTATUS[0]}")  # fmt: skip
    assert run.returncode == 141
    assert "Broken" not in run.stderr
    assert "Traceback" not in run.stderr


@pytest.mark.parametrize("arguments", ["info", "--help", "--version"])
def test_a_full_disk(arguments: str) -> None:
    run = shell(f"$ADAMAS {arguments} > /dev/full")
    assert run.returncode == 2
    assert run.stderr.count("\n") == 1
    assert run.stderr.endswith(": stdout: No space left on device\n")


def test_a_full_disk_while_text_is_generated(letters_model: list[str]) -> None:
    run = shell(f"$ADAMAS generate {' '.join(letters_model)} --prompt hi > /dev/full")
    assert run.returncode == 2
    assert run.stderr == "adamas-core generate: stdout: No space left on device\n"


def test_a_prompt_through_a_pipe(letters_model: list[str]) -> None:
    call = f"$ADAMAS generate {' '.join(letters_model)} --max-tokens 5"
    run = shell(f"printf 'hi you' | {call}")
    assert (run.returncode, run.stdout) == (0, shell(f"{call} --prompt 'hi you'").stdout)
    assert shell(f"{call} <&-").returncode == 0


def test_a_sentence_that_cannot_be_written() -> None:
    assert shell("$ADAMAS nosuch 2> /dev/full").returncode == 2


def test_closed_streams() -> None:
    assert shell("$ADAMAS info >&-").returncode == 0
    run = shell("$ADAMAS nosuch 2>&-")
    assert (run.returncode, run.stdout) == (2, "")


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "ascii:strict", "utf-8"])
def test_characters_that_the_encoding_lacks(encoding: str) -> None:
    code = r"from adamas_core.cli import streams; streams.prepare(); print('a\u2265\udce9b')"
    run = shell(f'{sys.executable} -c "{code}"', PYTHONIOENCODING=encoding)
    assert (run.returncode, run.stderr) == (0, "")
    assert run.stdout == ("a≥?b\n" if encoding == "utf-8" else "a??b\n")


def test_prepare_leaves_other_streams_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    mine = io.StringIO()
    monkeypatch.setattr(sys, "stdout", mine)
    streams.prepare()
    streams.discard("stdout")
    assert sys.stdout is mine
