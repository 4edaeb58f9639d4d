"""Texts on the terminal, of any content and at any width."""

from __future__ import annotations

import sys

import pytest

from adamas_core.cli import terminal
from adamas_core.cli.progress import steps

TEXT = "[/INST] [bold]x[/bold] :smile: [link=a]"


def test_text_is_shown_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    from rich.table import Table

    table = Table(title=TEXT)
    table.add_column(TEXT)
    table.add_row(TEXT)
    terminal.show(table)
    terminal.show(TEXT)
    assert capsys.readouterr().out.count(TEXT) == 4


@pytest.mark.parametrize(
    ("columns", "width"), [("0", 80), ("1", 40), ("120", 120), ("9" * 12, 1000), ("²", 80)]
)
def test_width(columns: str, width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    monkeypatch.setenv("LINES", columns)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert terminal.console().width == width


def test_the_width_of_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "0")
    assert terminal.console().width == 200


def test_progress_of_any_text_on_a_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich takes the stream for a terminal
    monkeypatch.setenv("COLUMNS", "0")
    with steps() as move:
        move(TEXT, 1, 2)
    printed = capsys.readouterr()
    assert "[/INST]" in printed.err
    assert printed.out == ""


def test_progress_is_not_for_files(capsys: pytest.CaptureFixture[str]) -> None:
    with steps() as move:
        move(TEXT, 1, 2)
    assert capsys.readouterr().err == ""


def test_a_closed_pipe_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    class Closed:
        encoding = "utf-8"

        def write(self, text: str) -> int:
            raise BrokenPipeError

        flush = fileno = isatty = lambda self, *text: False

    monkeypatch.setattr(sys, "stdout", Closed())
    with pytest.raises(BrokenPipeError):
        terminal.show(TEXT)
