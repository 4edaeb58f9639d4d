"""Only regular files are opened, so that no reader waits for ever."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from adamas_core.llama.files import regular


def test_a_regular_file_and_a_link_to_it_pass(tmp_path):
    path, link = tmp_path / "x", tmp_path / "link"
    path.write_bytes(b"")
    link.symlink_to(path)
    assert regular(path) == path
    assert regular(link) == link


def test_anything_else_is_an_error_that_names_it(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    for path, message in [
        (tmp_path, "a folder"),
        (tmp_path / "fifo", "a FIFO"),
        (Path("/dev/zero"), "special"),
        (tmp_path / "absent", "No such file"),
    ]:
        with pytest.raises(OSError, match=message) as error:
            regular(path)
        assert str(path) in str(error.value)


@pytest.mark.parametrize("name", ["a\0b", "\ud800"])
def test_a_path_that_no_file_can_have_is_an_error(name):
    with pytest.raises(OSError, match="is not the path of a file"):
        regular(Path(name))
