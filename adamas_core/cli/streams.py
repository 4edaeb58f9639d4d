"""The standard streams, which may be closed, full, or unable to show a character."""

from __future__ import annotations

import io
import os
import sys
from pathlib import Path

from ..file_errors import naming
from ..lab.texts import decoded


def prepare() -> None:
    """Open the streams that the caller closed, and let any text be written.

    A character that the encoding lacks is shown as "?" on stdout, and as an escape on stderr.
    """
    for name, errors in (("stdout", "replace"), ("stderr", "backslashreplace")):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=errors)


def piped() -> str:
    """The text of stdin, or none where it is a terminal or closed. Lines end as in a file."""
    if sys.stdin is None or sys.stdin.isatty():
        return ""
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(encoding="utf-8", errors="strict", newline=None)
    with naming(Path("stdin")):
        return decoded("stdin", sys.stdin.read)


def tell(sentence: str) -> None:
    """Print one line on stderr, if it can be written."""
    try:
        print(" ".join(sentence.splitlines()), file=sys.stderr, flush=True)
    except OSError:
        discard("stderr")


def finish() -> None:
    """Write the rest of stdout."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError:
        discard("stdout")
        raise


def discard(name: str) -> None:
    """Send the rest of a stream nowhere, so that Python's own flush at exit succeeds."""
    try:
        number = getattr(sys, name).fileno()
    except (AttributeError, io.UnsupportedOperation):  # a test's stream
        return
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), number)
