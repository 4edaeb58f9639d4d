"""Where programs find the header and the library."""

from __future__ import annotations

from pathlib import Path

import pytest

import adamas_core
from adamas_core import library
from adamas_core.cpu import native


def test_the_header() -> None:
    header = Path(adamas_core.get_include()) / "adamas.h"
    assert "#define ADAMAS_ABI 1" in header.read_text()


@pytest.mark.skipif(not native.path().is_file(), reason="the library was not built")
def test_the_library() -> None:
    assert Path(adamas_core.get_library()).samefile(native.path())


def test_a_library_that_was_not_built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "_native", lambda: tmp_path)
    with pytest.raises(FileNotFoundError, match="get_library: there is no libadamas in"):
        library.get_library()
    with pytest.raises(FileNotFoundError, match=r"get_include: there is no adamas\.h in"):
        library.get_include()
