"""The standard streams, which may be closed, full, or unable to show a character."""

from __future__ import annotations

import io
import os
import sys


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


def tell(sentence: str) -> None:
    """Print one line on stderr, if it can be written."""
    try:
        print(" ".join(sentence.splitlines()), file=sys.stderr, flush=True)
    except OSError:
        discard("stderr")


def finish() -> None:
    """Write the rest of stdout; an OSError names the stream."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        discard("stdout")
        raise OSError(error.errno, error.strerror, "stdout") from None


def discard(name: str) -> None:
    """Send the rest of a stream nowhere, so that Python's own flush at exit succeeds."""
    try:
        number = getattr(sys, name).fileno()
    except (AttributeError, io.UnsupportedOperation):  # a test's stream
        return
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), number)
