"""The values of options."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from adamas_core.cli import parser
from adamas_core.cli.parser import Parser, UsageError


@pytest.mark.parametrize(
    ("parse", "text", "value"),
    [
        (parser.whole(1), "1", 1),
        (parser.whole(0), "2147483647", 2**31 - 1),
        (parser.whole(0, 2**64 - 1), str(2**64 - 1), 2**64 - 1),
        (parser.real, "1e-3", 0.001),
        (parser.words, "né", "né"),
        (parser.words, os.fsdecode("né".encode("latin-1").replace(b"\xe9", b"\xc3\xa9")), "né"),
        (parser.words, "n\udcc3\udca9", "né"),  # UTF-8 in a locale that is not
        (parser.words, "", ""),
        (parser.nonempty, "a/b", Path("a/b")),
        (parser.existing, "/", Path("/")),
    ],
)
def test_values(parse: Callable[[str], Any], text: str, value: object) -> None:
    assert parse(text) == value


@pytest.mark.parametrize(
    ("parse", "text", "message"),
    [
        (parser.whole(1), "0", "^0; expected at least 1$"),
        (parser.whole(1), "-5", "^-5; expected at least 1$"),
        (parser.whole(256, 8192), "9000", "^9000; expected 256 to 8192$"),
        (parser.whole(1), str(2**31), "^2147483648; expected at least 1 and at most 2147483647$"),
        (parser.whole(1), "9" * 5000, r"^9{77}\.\.\.; expected a whole number"),
        (parser.whole(1), "1.5", "^1.5; expected a whole number, at least 1$"),
        (parser.whole(1), "nan", "^nan; expected a whole number"),
        (parser.whole(1), "", "^''; expected a whole number"),
        (parser.whole(1), "a\nb", r"^'a\\nb'; expected a whole number"),
        (parser.real, "nan", "^nan; expected a finite number$"),
        (parser.real, "-inf", "^-inf; expected a finite number$"),
        (parser.real, "1e999", "^1e999; expected a finite number$"),
        (parser.real, "x", "^x; expected a finite number$"),
        (parser.words, "caf\udce9", r"^'caf\\udce9'; expected text in UTF-8$"),
        (parser.words, "\ud800", "expected text in UTF-8$"),
        (parser.existing, "", "^empty; expected a path$"),
        (parser.existing, "/nowhere/x", "^/nowhere/x: No such file or directory$"),
        (parser.existing, "/dev/null/x", "^/dev/null/x: Not a directory$"),
        (parser.existing, "a" * 5000, "File name too long$"),
        (parser.existing, "a\0b", "null byte"),
        (parser.nonempty, "", "^empty; expected a path$"),
    ],
)
def test_values_that_are_refused(parse: Callable[[str], Any], text: str, message: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match=message):
        parse(text)


def test_a_file_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may read anything
    with pytest.raises(argparse.ArgumentTypeError, match="Permission denied"):
        parser.existing(str(tmp_path))
    with pytest.raises(PermissionError, match="out"):
        parser.writable(tmp_path / "out")


def test_a_folder_for_results(tmp_path: Path) -> None:
    parser.writable(tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b").is_dir()
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "b"):
        with pytest.raises(OSError, match="file"):
            parser.writable(path)


@pytest.mark.parametrize("number", ["-5", "-1e5", "-inf", "-nan", "-0.5"])
def test_a_negative_number_is_a_value(number: str) -> None:
    own = Parser(prog="x")
    own.add_argument("--sum", type=float)
    own.add_argument("--all", action="store_true")
    found = own.parse_args(parser.joined(["--all", "--sum", number]))
    assert str(found.sum) == str(float(number))


def test_other_arguments_stay_as_they_are() -> None:
    for argv in (["--a=1", "-5"], ["--a", "-b"], ["-a", "-5"], ["--a", "5", "-6"], []):
        assert parser.joined(argv) == argv


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--sum", "-x"], "^x: --sum: expected one argument; write --name=VALUE for a value that"),
        (["--su=1"], "^x: unrecognized arguments: --su=1$"),
        (["--sum=a"], "^x: --sum: a; expected a finite number$"),
    ],
)
def test_errors_are_raised(argv: list[str], message: str) -> None:
    own = Parser(prog="x")
    own.add_argument("--sum", type=parser.real)
    with pytest.raises(UsageError, match=message):
        own.parse_args(argv)


def test_shortened() -> None:
    assert parser.shortened("a" * 80) == "a" * 80
    assert parser.shortened("a" * 81) == "a" * 77 + "..."


def test_options_without_effect() -> None:
    parser.no_effect({"--a": None}, "with --b")
    for value in (0, False, "", "x"):
        with pytest.raises(ValueError, match=r"^--c has no effect with --b$"):
            parser.no_effect({"--a": None, "--c": value}, "with --b")
