"""The command ``adamas-core generate``, on a small random model."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from tiny_model import OutOf


def test_generate_is_the_same_where_the_budget_covers_the_context(
    letters_model: list[str], out_of: OutOf
) -> None:
    prompt = ["--prompt=hello there, who are you?", "--max-tokens=20"]
    full = out_of("generate", *letters_model, *prompt, "--attention=full")
    assert full[0] == 0
    assert full[1]
    assert "prompt 27 tokens" in full[2]
    assert "tokens/s; attention takes" in full[2]
    for more in (["--budget=256"], ["--budget=256", "--backend=reference"]):
        assert out_of("generate", *letters_model, *prompt, *more)[1] == full[1]


def test_generate_with_every_option(
    letters_model: list[str], out_of: OutOf, tmp_path: Path
) -> None:
    (tmp_path / "prompt.txt").write_text("abc " * 30)
    options = ["--prompt-file", str(tmp_path / "prompt.txt"), "--budget=8", "--metric=manhattan"]
    options += ["--query-bits=3", "--sinks=2", "--recent=2", "--dense-layers=1", "--max-tokens=9"]
    options += ["--temperature=0.8", "--top-p=0.9", "--seed=3"]
    first = out_of("generate", *letters_model, *options)
    assert first[0] == 0
    assert out_of("generate", *letters_model, *options)[1] == first[1]
    assert out_of("generate", *letters_model, *options, "--backend=reference")[1] == first[1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--budget=0"], "budget=0; expected at least 1"),
        (["--budget=4", "--sinks=5"], "expected at most budget=4"),
        (["--prompt-file=/nowhere/prompt.txt"], "No such file"),
        (["--temperature=-1"], "temperature is -1.0"),
        (["--chat"], "chat template is neither ChatML nor"),
        (["--prompt=" + "a" * 300], "do not fit the model's context of 256"),
        (["--dense-layers=9"], "dense_layers holds"),
    ],
)
def test_errors_of_generate(
    letters_model: list[str], options: list[str], message: str, out_of: OutOf
) -> None:
    prompt = [] if options[0].startswith("--prompt") else ["--prompt=hello"]
    status, _, err = out_of("generate", *letters_model, *prompt, *options)
    assert status == 2
    assert message in err.splitlines()[-1]
    assert "Traceback" not in err


def test_a_model_that_is_not_there(out_of: OutOf) -> None:
    status, _, err = out_of("generate", "--model=/nowhere/model.gguf")
    assert status == 2
    assert "/nowhere/model.gguf" in err


def test_a_cut_model(letters_model: list[str], tmp_path: Path, out_of: OutOf) -> None:
    whole = Path(letters_model[0].partition("=")[2]).read_bytes()
    (tmp_path / "cut.bin").write_bytes(whole[:-1000])
    status, _, err = out_of("generate", f"--model={tmp_path / 'cut.bin'}", letters_model[1])
    assert status == 2
    assert "cut.bin" in err
    assert "Traceback" not in err


def test_without_rich(
    letters_model: list[str], monkeypatch: pytest.MonkeyPatch, out_of: OutOf
) -> None:
    monkeypatch.setitem(sys.modules, "rich.console", None)
    status, _, err = out_of("generate", *letters_model, "--prompt=hello")
    assert status == 2
    assert 'rich is missing: pip install "adamas-core[llama]"' in err
