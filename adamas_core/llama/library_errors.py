"""Errors of outside libraries, as errors that name the file."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from .settings import CheckpointError


@contextmanager
def library_errors(where: str) -> Iterator[None]:
    """Inside the block, any error of a library becomes a CheckpointError that begins with `where`.

    The libraries raise almost anything for a damaged file. A panic of a Rust library is no
    Exception, and its class has no public name. OSError and MemoryError pass.
    """
    try:
        yield
    except (CheckpointError, OSError, MemoryError):
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise  # Ctrl-C
        raise CheckpointError(f"{where}: {error}") from error
