"""Errors of a file that is written: they name the path that the caller knows."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Let each error of the system in the block name `path`.

    Otherwise the error names a temporary file, or no file, as when a disk is full.
    """
    try:
        yield
    except OSError as error:
        if error.errno is None or error.filename == str(path):
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error
