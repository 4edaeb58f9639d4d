"""The command ``adamas-core demo``."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_model import OutOf

from adamas_core import KVCache
from adamas_core.cli import demo
from adamas_core.lab.meter import Meter
from adamas_core.llama import Tokenizer, fetch


def test_demo_without_a_network(tmp_path: Path) -> None:
    """One sentence that says what is missing, and exit code 2."""
    run = subprocess.run(
        [sys.executable, "-m", "adamas_core", "demo"],
        env={
            **os.environ,
            "ADAMAS_CACHE": str(tmp_path),
            "PIP_INDEX_URL": "http://127.0.0.1:9/simple",
            "PIP_EXTRA_INDEX_URL": "",
            "PIP_FIND_LINKS": "",
            "PIP_CONFIG_FILE": os.devnull,
        },
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parent.parent,
    )
    assert run.returncode == 2, run.stderr
    assert "Traceback" not in run.stderr
    last = run.stderr.splitlines()[-1]
    assert last.startswith(f"adamas-core demo: the model is not in {tmp_path} and pip could not")
    assert "is there a network?" in last
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--tokens=255"], "--tokens: 255; expected 256 to 32768"),
        (["--model=gemma3-270m", "--tokens=32769"], "--tokens: 32769; expected 256 to 32768"),
        (["--model=other"], "--model: invalid choice: 'other'"),
        (["--tokens=8193"], "--tokens: 8193; expected 256 to 8192"),
        (["--tokens", "-1e3"], "--tokens: -1e3; expected a whole number, 256 to 32768"),
        (["--budget=0"], "--budget: 0; expected at least 1"),
        (["--sinks=128", "--recent=1"], "are 129 tokens; expected at most budget=128"),
        (["--question=caf\udce9"], "--question: 'caf\\udce9'; expected text in UTF-8"),
        (["--group", "--refine=2"], "group=True with refine=2"),
    ],
)
def test_errors_come_before_the_download(
    options: list[str], message: str, out_of: OutOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetch, "fetch", None)
    status, out, err = out_of("demo", *options)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("adamas-core demo: ")
    assert message in err


def test_without_rich_nothing_is_downloaded(out_of: OutOf, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch, "fetch", None)
    monkeypatch.setitem(sys.modules, "rich.console", None)
    status, _, err = out_of("demo")
    assert (status, err.count("rich is missing")) == (2, 1)


def test_a_question_that_does_not_fit(byte_level: dict[str, Tokenizer]) -> None:
    tokenizer = byte_level["smollm"]
    assert len(demo.with_documentation(tokenizer, "What is it?", 100)) <= 100
    with pytest.raises(ValueError, match=r"--question: \d+ tokens .*; expected at most 100"):
        demo.with_documentation(tokenizer, "What is it? " * 100, 100)


def test_answers_are_shown_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    """A model may answer with text that rich reads as markup."""

    class Letters:
        def decode(self, tokens: list[int]) -> str:
            return " [/INST] " * len(tokens)

    meter = Meter(KVCache(), 8)
    meter.calls, meter.seconds, meter.bytes, meter.dense_bytes = 2, 0.5, 100, 200
    answers = {name: demo.Answer([1, 2], 1.0, meter) for name in ("Full", "Adamas")}
    demo.show(answers, Letters(), 1)  # type: ignore[arg-type]
    out = capsys.readouterr().out
    assert out.count("[/INST]") == 4
    assert "They give the same answer; a step of attention is 1.0x as fast and reads 2.0x" in out
