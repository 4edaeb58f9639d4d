"""A parser whose errors are one sentence, and the values that options take."""

from __future__ import annotations

import argparse
import errno
import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from ..checks import MAX_TOKENS


class UsageError(ValueError):
    """The arguments are wrong. The text names the command and the option."""


class Parser(argparse.ArgumentParser):
    """Raises a UsageError of one sentence; no option can be abbreviated."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{**options, "allow_abbrev": False})

    def print_help(self, file: Any = None) -> None:
        print(self.format_help(), end="", file=file)  # argparse hides that it cannot be written

    def error(self, message: str) -> NoReturn:
        message = message.removeprefix("argument ")
        if message.endswith("expected one argument"):
            message += "; write --name=VALUE for a value that begins with -"
        raise UsageError(f"{self.prog}: {message}")


class Version(argparse.Action):
    """The option that prints its `const` and ends the program."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options, nargs=0, help="show the version and exit")

    def __call__(self, parser: argparse.ArgumentParser, *given: object) -> None:
        print(self.const)
        parser.exit()


def joined(argv: Sequence[str]) -> list[str]:
    """The arguments, each option with a negative number after it as --name=number.

    argparse takes -5 as a number, and -1e5 or -inf as the name of an option.
    """
    out: list[str] = []
    for argument in argv:
        if out and out[-1].startswith("--") and "=" not in out[-1] and is_negative(argument):
            out[-1] += f"={argument}"
        else:
            out.append(argument)
    return out


def is_negative(argument: str) -> bool:
    """Whether an argument is a number that begins with a minus sign."""
    try:
        float(argument)
    except ValueError:
        return False
    return argument.startswith("-")


def whole(low: int, high: int = MAX_TOKENS) -> Callable[[str], int]:
    """The type of an option that is an integer from `low` to `high`."""

    def parse(text: str) -> int:
        expected = f"at least {low}" if high == MAX_TOKENS else f"{low} to {high}"
        try:
            value = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(
                f"{shortened(text)}; expected a whole number, {expected}"
            ) from None
        if not low <= value <= high:
            at_most = f" and at most {high}" if high == MAX_TOKENS < value else ""
            raise argparse.ArgumentTypeError(f"{shortened(text)}; expected {expected}{at_most}")
        return value

    return parse


def real(text: str) -> float:
    """The type of an option that is a finite number."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"{shortened(text)}; expected a finite number")
    return value


def words(argument: str) -> str:
    """The type of an option that is text, from the bytes that the shell gave."""
    try:
        # Bytes that are not in the locale's encoding arrive as surrogates.
        return argument if is_utf8(argument) else os.fsencode(argument).decode("utf-8")
    except UnicodeError:
        raise argparse.ArgumentTypeError(f"{shortened(argument)}; expected text in UTF-8") from None


def is_utf8(text: str) -> bool:
    """Whether a string has no lone surrogates."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def existing(text: str) -> Path:
    """The type of an option that is the path of a file or folder to read."""
    path = nonempty(text)
    try:
        path.stat()
        readable = os.access(path, os.R_OK)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise argparse.ArgumentTypeError(f"{shortened(text)}: {reason}") from None
    if not readable:
        raise argparse.ArgumentTypeError(f"{shortened(text)}: Permission denied")
    return path


def nonempty(text: str) -> Path:
    """A path; Path("") would be the current folder."""
    if not text:
        raise argparse.ArgumentTypeError("empty; expected a path")
    return Path(text)


def writable(folder: Path) -> None:
    """Make a folder for results; an OSError names it if nothing can be written there."""
    folder.mkdir(parents=True, exist_ok=True)
    if not os.access(folder, os.W_OK | os.X_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(folder))


def no_effect(options: Mapping[str, object], why: str) -> None:
    """Reject options that were given, and that another one makes useless; None is not given."""
    for option, value in options.items():
        if value is not None:
            raise ValueError(f"{option} has no effect {why}")


def shortened(text: str) -> str:
    """A value as errors show it: at most 80 characters, on one line."""
    shown = text if text.isprintable() and text else ascii(text)
    return shown if len(shown) <= 80 else f"{shown[:77]}..."
