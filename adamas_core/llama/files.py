"""The files that can be read: regular ones. Opening a FIFO or a device can block for ever."""

from __future__ import annotations

import os
import stat
from pathlib import Path


def regular(path: Path) -> Path:
    """The path itself, if a regular file is there. Otherwise it raises an OSError."""
    try:
        mode = os.stat(path).st_mode
    except ValueError as error:  # a NUL, or half of a surrogate pair
        raise OSError(f"{str(path)!r} is not the path of a file: {error}") from None
    if not stat.S_ISREG(mode):
        kind = "a folder" if stat.S_ISDIR(mode) else "a FIFO" if stat.S_ISFIFO(mode) else "special"
        raise OSError(f"{path}: this is {kind}, expected a regular file")
    return path
