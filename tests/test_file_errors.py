"""Errors of a file that is written."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from adamas_core.file_errors import naming

PATH = Path("folder/file")


@pytest.mark.parametrize("other", [(), ("folder/temporary",), (b"bytes",), (7,)])
def test_an_error_names_the_path(other: tuple[object, ...]) -> None:
    with pytest.raises(FileNotFoundError, match=r"No such.*: 'folder/file'") as found, naming(PATH):
        raise OSError(errno.ENOENT, "No such file", *other)
    assert (found.value.filename, found.value.errno) == ("folder/file", errno.ENOENT)


@pytest.mark.parametrize(
    "error", [OSError("a sentence"), OSError(errno.EIO, "broken", str(PATH)), ValueError("no")]
)
def test_other_errors_stay(error: Exception) -> None:
    with pytest.raises(type(error)) as found, naming(PATH):
        raise error
    assert found.value is error
