"""The command ``adamas-core info``."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_model import OutOf

from adamas_core.cli import info
from adamas_core.cpu._engine import ENGINE


def test_info(out_of: OutOf) -> None:
    status, out, _ = out_of("info")
    assert status == 0
    told = dict(line.split(maxsplit=1) for line in out.splitlines())
    assert told["backends"].startswith(f"reference (NumPy), cpu ({ENGINE.about}")
    assert told["GPU"].startswith("none: ")
    assert int(told["threads"].split()[0]) >= 1
    assert set(told) >= {"adamas-core", "libraries", "SIMD", "llama"}


def test_check_runs_the_script_of_the_source_tree(
    out_of: OutOf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert (Path(__file__).parent.parent / "benchmarks" / "gpu_check.py").samefile(info.CHECK)
    script = tmp_path / "check.py"
    script.write_text(
        "import pathlib, sys\n"
        f"pathlib.Path({str(tmp_path / 'told')!r}).write_text(str(sys.argv[1:]))\n"
        "sys.exit(3)\n"
    )
    monkeypatch.setattr(info, "CHECK", script)
    monkeypatch.setattr(info, "why_not", lambda: None)
    assert out_of("info", "--check")[0] == 3
    assert (tmp_path / "told").read_text() == "['--out', 'gpu_check']"
    assert out_of("info", "--check", "--out", "x")[0] == 3
    assert (tmp_path / "told").read_text() == "['--out', 'x']"


@pytest.mark.parametrize(
    ("arguments", "there", "sentence"),
    [
        (["--check"], False, "--check needs a source tree, because the tests are not installed: "),
        (["--check"], True, "--check needs a GPU: no luck"),
        (["--out", "x"], True, "--out has no effect without --check"),
    ],
)
def test_a_check_that_cannot_run(
    arguments: list[str],
    there: bool,
    sentence: str,
    out_of: OutOf,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(info, "why_not", lambda: "no luck")
    if not there:
        monkeypatch.setattr(info, "CHECK", info.CHECK / "missing")
    status, out, err = out_of("info", *arguments)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert err.startswith(f"adamas-core info: {sentence}")
