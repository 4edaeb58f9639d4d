"""A folder for one download, and the leftovers of killed ones."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from adamas_core.llama.download_folder import PREFIX, download_folder

ROOT = Path(__file__).parent.parent
HOLD = """
import sys, time
from pathlib import Path
from adamas_core.llama.download_folder import download_folder
with download_folder(Path(sys.argv[1])) as folder:
    (folder / "part").write_bytes(bytes(1000))
    print("there", flush=True)
    time.sleep(60)
"""


def holder(parent: Path) -> subprocess.Popen[str]:
    """A process in the middle of a download."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(parent)], stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "there\n"
    return process


def test_a_folder_is_removed(tmp_path: Path) -> None:
    with download_folder(tmp_path / "a" / "b") as folder:
        (folder / "x").write_text("")
        assert folder.parent == tmp_path / "a" / "b"
    with pytest.raises(KeyboardInterrupt), download_folder(tmp_path / "a" / "b"):
        raise KeyboardInterrupt
    assert not list((tmp_path / "a" / "b").iterdir())


def test_a_folder_that_cannot_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error names the parent, because the name of the folder is random."""
    monkeypatch.setattr("tempfile.mkdtemp", full)
    with pytest.raises(OSError, match=r"No space left.*/a'$"), download_folder(tmp_path / "a"):
        pass


def full(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device", "/random")


def test_leftovers_of_a_killed_download_are_removed_at_the_next(tmp_path: Path) -> None:
    (tmp_path / "mine.gguf").write_text("")
    process = holder(tmp_path)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    (old,) = tmp_path.glob(f"{PREFIX}*")
    assert (old / "part").exists()
    with download_folder(tmp_path) as folder:
        assert not old.exists()
        assert sorted(tmp_path.iterdir()) == sorted([tmp_path / "mine.gguf", folder])


def test_a_download_of_another_process_is_waited_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    process = holder(tmp_path)
    (theirs,) = tmp_path.glob(f"{PREFIX}*")
    seen: list[bool] = []

    def wait() -> None:
        with download_folder(tmp_path):
            seen.append(theirs.exists())

    thread = threading.Thread(target=wait)
    thread.start()
    thread.join(0.3)
    assert thread.is_alive()
    assert (theirs / "part").exists()
    process.kill()
    process.communicate()
    thread.join(30)
    assert seen == [False]
    assert "waiting for it" in capsys.readouterr().err


def test_without_locks_leftovers_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They may be the folders of others."""

    def refused(*args: object) -> None:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", refused)
    (tmp_path / f"{PREFIX}x").mkdir()
    with download_folder(tmp_path) as folder:
        assert folder.is_dir()
    assert os.listdir(tmp_path) == [f"{PREFIX}x"]
