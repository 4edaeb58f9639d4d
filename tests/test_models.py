"""Real models through full attention and Adamas: stories260K of ../shared, SmolLM2 of PyPI."""

from __future__ import annotations

from pathlib import Path

import pytest

from adamas_core import KVCache, cli, llama
from adamas_core.llama import fetch

MODELS = Path(__file__).resolve().parents[2] / "shared" / "data" / "models"
pytestmark = pytest.mark.model


@pytest.mark.skipif(not MODELS.is_dir(), reason=f"{MODELS} is absent")
@pytest.mark.parametrize("backend_name", ["cpu", "reference"])
@pytest.mark.parametrize("metric", ["weighted", "manhattan"])
@pytest.mark.parametrize("budget", [None, 201])
def test_stories(budget: int | None, metric: str, backend_name: str) -> None:
    """The known greedy text, byte for byte, densely and where the budget covers the context."""
    model = llama.load(MODELS / "stories260K.bin")
    tokenizer = llama.load_tokenizer(MODELS / "tok512.bin")
    cache = KVCache(model.config.layers, metric=metric, backend=backend_name)
    tokens = llama.generate(model, [tokenizer.bos], cache.attention(budget), max_tokens=200)
    expected = (MODELS / "stories260K.greedy.txt").read_bytes()
    assert tokenizer.decode(tokens).encode() == expected


@pytest.fixture(scope="module")
def smollm2() -> Path:
    """The model of the demo, fetched as the demo fetches it."""
    return fetch.smollm2()


def test_smollm2_tokens(smollm2: Path) -> None:
    tokenizer = llama.load_tokenizer(smollm2)
    assert tokenizer.encode("Hello world! 123") == [19556, 905, 17, 216, 33, 34, 35]


@pytest.mark.parametrize("attention", ["full", "adamas"])
def test_smollm2_knows_a_capital(
    smollm2: Path, attention: str, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--prompt", "What is the capital of France?", "--chat", f"--attention={attention}"]
    assert cli.main(["generate", f"--model={smollm2}", *options, "--budget=16"]) == 0
    assert "Paris" in capsys.readouterr().out


def test_demo(smollm2: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two answers out of 8K tokens, and what they cost."""
    assert cli.main(["demo"]) == 0
    out = capsys.readouterr().out
    assert "has read 81" in out
    assert "fewer bytes of KV cache" in out
