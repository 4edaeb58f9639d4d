"""Progress bars."""

from __future__ import annotations

import pytest

from adamas_core.cli.progress import bar, steps


def test_bars_are_moved(capsys: pytest.CaptureFixture[str]) -> None:
    with steps() as move:
        move("first", 1, 2)
        move("second", 0, None)
    with bar("third") as advance:
        advance(3, 4)
    assert capsys.readouterr().out == ""
