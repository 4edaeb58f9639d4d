"""Records of results go on where they were cut."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from adamas_core import __version__
from adamas_core.lab.records import Record, settings


def test_the_record_goes_on_where_it_was_cut(tmp_path: Path) -> None:
    path = tmp_path / "new" / "cells.jsonl"
    given = {"model": "m", "positions": 8}
    record = Record(path, given, ("text", "budget"))
    one = {"text": "a", "budget": 1, "options": "x", "kl": 0.5}
    record.add(one)
    record.add({**one, "budget": 2})
    whole = path.read_text()
    path.write_text(whole[:-10])
    again = Record(path, given, ("text", "budget"))
    assert list(again) == [one]
    assert again.has({"text": "a", "budget": 1, "options": "x"})
    assert not again.has({"text": "a", "budget": 2, "options": "x"})
    again.add({**one, "budget": 2})
    assert len(list(Record(path, given, ("text", "budget")))) == 2
    with pytest.raises(ValueError, match=r"of positions = 8, now it is 9: choose another --out"):
        Record(path, {"model": "m", "positions": 9}, ("text", "budget"))
    with pytest.raises(ValueError, match=r"for a 1 of options = 'x', now it is 'y'"):
        again.has({"text": "a", "budget": 1, "options": "y"})


def test_settings_of_a_file_and_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "a.bin").write_bytes(b"123")
    (tmp_path / "b.bin").write_bytes(b"45")
    expected = {"adamas_core": __version__, "model": "a.bin", "model_bytes": 3, "positions": 7}
    assert settings(tmp_path / "a.bin", 7) == expected
    del expected["positions"]
    assert settings(tmp_path / "a.bin") == expected
    expected["positions"] = 7
    assert settings(tmp_path, 7) == {**expected, "model": tmp_path.name, "model_bytes": 5}


def test_a_record_without_results_takes_other_settings(tmp_path: Path) -> None:
    """A run that was refused before its first result blocks no other run."""
    path = tmp_path / "cells.jsonl"
    Record(path, {"positions": 64}, ["text"])
    record = Record(path, {"positions": 16}, ["text"])
    record.add({"text": "a"})
    with pytest.raises(ValueError, match="positions"):
        Record(path, {"positions": 64}, ["text"])


def test_a_failed_write_names_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk gives an error without a name."""
    path = tmp_path / "cells.jsonl"
    record = Record(path, {}, ["text"])
    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match=r"No space left.*cells\.jsonl'$"):
        Record(path, {}, ["text"])
    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(OSError, match=r"No space left.*cells\.jsonl'$"):
        record.add({"text": "a"})


def full(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")
