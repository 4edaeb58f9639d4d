"""The command ``adamas-core mechanisms``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tiny_model import OutOf

from adamas_core import cli
from adamas_core.cli import mechanisms
from adamas_core.lab import indexer_fit, mechanism_costs, mechanism_report, needles
from adamas_core.lab.mechanism_catalog import ROWS


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few mechanisms and short runs."""
    some = ("softmax", "window", "adamas", "gated-delta")
    for module in (mechanism_report, mechanism_costs):
        monkeypatch.setattr(module, "ROWS", {name: ROWS[name] for name in some})
        monkeypatch.setattr(module, "STEPS", (1023, 2047))
        monkeypatch.setattr(module, "PREFILLS", (128, 256))
    monkeypatch.setattr(mechanism_report, "found", lambda name: needles.found(name, SMALL, 2))
    monkeypatch.setattr(mechanisms, "LEAST", 64)
    monkeypatch.setattr(indexer_fit, "STEPS", 2)


SMALL = needles.SIZES._replace(S=256)


def test_without_a_model(out_of: OutOf, short: None, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    status, printed, _ = out_of("mechanisms", "--no-model", "--json")
    assert status == 0
    report = json.loads(printed)
    assert [row["mechanism"] for row in report["rows"]] == [*mechanism_report.ROWS]
    assert report["rows"][0]["found"] == 1
    assert report["rows"][2]["operations"] is None
    assert "errors" not in report
    status, printed, _ = out_of("mechanisms", "--no-model")
    assert status == 0
    assert "MHA, GQA, MQA" in printed
    assert "Llama 3, Qwen3" in printed


def test_with_a_model(out_of: OutOf, short: None, letters_model: list[str], tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("abc abcd hgf. Abcdefgh, " * 40)
    given = ["mechanisms", *letters_model, f"--text={text}", "--context=128"]
    out = tmp_path / "out"
    status, printed, err = out_of(*given, f"--out={out}")
    assert status == 0, err
    assert "LoLCATs, fitted" in printed
    assert "DSA indexer, fitted" in printed
    report: dict[str, Any] = json.loads((out / "mechanisms.json").read_text())
    assert report["errors"]["softmax"] < 1e-5
    assert report["errors"]["window"] < 1e-5  # 128 tokens
    assert report["latent"] == []  # keys and values of a token are too few numbers
    assert {"command", "date", "model", "machine", "context"} <= set(report)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--no-model", "--context=512"], "--context has no effect with --no-model"),
        (["--no-model", "--text=pydoc"], "--text has no effect with --no-model"),
        (["--context=9000"], "a context of 9000 is more than the 8192 of the model"),
        (["--text=nosuch.txt"], "--text: nosuch.txt: No such file"),
        (["--context=5"], "--context: 5; expected at least 512"),
    ],
)
def test_options_are_checked_first(
    options: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["mechanisms", *options]) == 2
    assert sentence in capsys.readouterr().err
