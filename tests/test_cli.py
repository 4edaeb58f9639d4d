"""The command line as a whole."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_model import OutOf

from adamas_core import cli


def test_as_a_module() -> None:
    run = subprocess.run(
        [sys.executable, "-m", "adamas_core", "--version"],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parent.parent,
    )
    assert run.stdout.startswith("adamas-core ")


def test_every_command_is_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--help"]) == 0
    out = capsys.readouterr().out
    for name, module in cli.COMMANDS.items():
        assert name in out
        home = f"adamas_core.cli.{name.replace('-', '_')}"
        assert importlib.import_module(home) is module


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "adamas-core: the following arguments are required: COMMAND"),
        (["nosuch"], "adamas-core: COMMAND: invalid choice: 'nosuch' (choose from "),
        (["n\udce9"], "adamas-core: COMMAND: invalid choice: 'n\\udce9' (choose from "),
        (["info", "more"], "adamas-core: unrecognized arguments: more"),
        (["generate", "--prompt=a"], "adamas-core generate: the following arguments are required"),
        (["demo", "--tok=300"], "adamas-core: unrecognized arguments: --tok=300"),
    ],
)
def test_wrong_arguments_are_one_sentence(
    arguments: list[str], sentence: str, out_of: OutOf
) -> None:
    status, out, err = out_of(*arguments)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert err.startswith(sentence)


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (KeyboardInterrupt(), 130, "interrupted"),
        (BrokenPipeError(), 141, ""),
        (MemoryError(), 2, "not enough memory"),
        (MemoryError("2 TiB"), 2, "not enough memory: 2 TiB"),
        (FileNotFoundError(2, "No such file", "a.gguf"), 2, "a.gguf: No such file"),
        (OSError(28, "No space left on device"), 2, "stdout: No space left on device"),
        (OSError(28, "No space left on device", "a.json"), 2, "a.json: No space left on device"),
        (OSError("the model is not there"), 2, "the model is not there"),
        (ValueError("two\nlines"), 2, "two lines"),
        (ValueError(), 2, "ValueError"),
        (ImportError("rich is missing"), 2, "rich is missing"),
    ],
)
def test_an_error_is_one_sentence(
    error: BaseException,
    status: int,
    line: str,
    monkeypatch: pytest.MonkeyPatch,
    out_of: OutOf,
) -> None:
    def fail(args: object) -> int:
        raise error

    monkeypatch.setattr(cli.info, "run", fail)
    assert out_of("info") == (status, "", f"adamas-core info: {line}\n" if line else "")


def test_a_fault_of_the_program_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli.info, "run", lambda args: {}["key"])
    with pytest.raises(KeyError):
        cli.main(["info"])
