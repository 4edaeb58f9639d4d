"""A folder for one download, beside the place where the file will be."""

from __future__ import annotations

import fcntl
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..file_errors import naming

PREFIX = "adamas-download-"


@contextmanager
def download_folder(parent: Path) -> Iterator[Path]:
    """A new folder in `parent`, which is removed after the block.

    One process at a time has such a folder, and others wait. So every other folder of the same kind
    is left over from a process that was killed, and is removed first.
    """
    parent.mkdir(parents=True, exist_ok=True)
    lock = os.open(parent, os.O_RDONLY)
    try:
        if _locked(lock, parent):
            for old in parent.glob(f"{PREFIX}*"):
                shutil.rmtree(old, ignore_errors=True)
        with naming(parent):  # and not a folder whose name is random
            folder = tempfile.TemporaryDirectory(prefix=PREFIX, dir=parent)
        with folder as name:
            yield Path(name)
    finally:
        os.close(lock)


def _locked(lock: int, parent: Path) -> bool:
    """Lock a folder, after a wait; False if its file system has no locks."""
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"Another process downloads to {parent}; waiting for it", file=sys.stderr)
            fcntl.flock(lock, fcntl.LOCK_EX)
    except OSError:
        return False
    return True
