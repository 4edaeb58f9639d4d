"""The command line, on a small random model; its errors; and nothing fetched without a network."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_model import write_letters_model

from adamas_core import KVCache, cli
from adamas_core.cli.meter import Meter, amount


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A model of random weights and its tokenizer, as arguments."""
    folder = tmp_path_factory.mktemp("model")
    path, tokenizer = write_letters_model(folder)
    return ["generate", f"--model={path}", f"--tokenizer={tokenizer}"]


def out_of(capsys: pytest.CaptureFixture[str], *args: str) -> tuple[int, str, str]:
    status = cli.main(args)
    printed = capsys.readouterr()
    return status, printed.out, printed.err


def test_generate_is_the_same_where_the_budget_covers_the_context(
    model: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    prompt = ["--prompt=hello there, who are you?", "--max-tokens=20"]
    full = out_of(capsys, *model, *prompt, "--attention=full")
    assert full[0] == 0
    assert full[1]
    assert "prompt 27 tokens" in full[2]
    assert "tokens/s; attention takes" in full[2]
    for more in (["--budget=256"], ["--budget=256", "--backend=reference"]):
        assert out_of(capsys, *model, *prompt, *more)[1] == full[1]


def test_generate_with_every_option(
    model: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "prompt.txt").write_text("abc " * 30)
    options = ["--prompt-file", str(tmp_path / "prompt.txt"), "--budget=8", "--metric=manhattan"]
    options += ["--query-bits=3", "--sinks=2", "--recent=2", "--dense-layers=1", "--max-tokens=9"]
    options += ["--temperature=0.8", "--top-p=0.9", "--seed=3"]
    first = out_of(capsys, *model, *options)
    assert first[0] == 0
    assert out_of(capsys, *model, *options)[1] == first[1]
    assert out_of(capsys, *model, *options, "--backend=reference")[1] == first[1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--budget=0"], "budget=0; expected at least 1"),
        (["--budget=4", "--sinks=5"], "expected at most budget=4"),
        (["--prompt-file=/nowhere/prompt.txt"], "No such file"),
        (["--temperature=-1"], "temperature is -1.0"),
        (["--chat"], "chat template is not ChatML"),
        (["--prompt=" + "a" * 300], "do not fit the model's context of 256"),
        (["--dense-layers=9"], "dense_layers holds"),
    ],
)
def test_errors_of_generate(
    model: list[str], options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    prompt = [] if options[0].startswith("--prompt") else ["--prompt=hello"]
    status, _, err = out_of(capsys, *model, *prompt, *options)
    assert status == 2
    assert message in err.splitlines()[-1]
    assert "Traceback" not in err


def test_a_model_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    status, _, err = out_of(capsys, "generate", "--model=/nowhere/model.gguf")
    assert status == 2
    assert "/nowhere/model.gguf" in err


def test_a_cut_model(model: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = Path(model[1].partition("=")[2]).read_bytes()
    (tmp_path / "cut.bin").write_bytes(whole[:-1000])
    status, _, err = out_of(capsys, "generate", f"--model={tmp_path / 'cut.bin'}", model[2])
    assert status == 2
    assert "cut.bin" in err
    assert "Traceback" not in err


def test_info(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = out_of(capsys, "info")
    assert status == 0
    told = dict(line.split(maxsplit=1) for line in out.splitlines())
    assert told["backends"].startswith("reference (NumPy), cpu (Numba")
    assert told["GPU"].startswith("none: ")
    assert int(told["threads"].split()[0]) >= 1
    assert set(told) >= {"adamas-core", "libraries", "SIMD", "llama"}


def test_as_a_module() -> None:
    run = subprocess.run(
        [sys.executable, "-m", "adamas_core", "--version"],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parent.parent,
    )
    assert run.stdout.startswith("adamas-core ")


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
    assert not list(tmp_path.iterdir())


def test_without_rich(model: list[str], monkeypatch: Any, capsys: Any) -> None:
    monkeypatch.setitem(sys.modules, "rich.console", None)
    status, _, err = out_of(capsys, *model, "--prompt=hello")
    assert status == 2
    assert 'rich is missing: pip install "adamas-core[llama]"' in err


def test_meter_counts_the_bytes_of_decode_steps() -> None:
    rng = np.random.default_rng(0)
    k = rng.standard_normal((2, 200, 64)).astype(np.float32)
    q = rng.standard_normal((6, 200, 64)).astype(np.float32)
    meter = Meter(KVCache(), 16)
    meter(0, q, k, k)
    assert (meter.calls, meter.bytes) == (0, 0)
    meter(0, q[:, :1], k[:, :1], k[:, :1])
    assert meter.calls == 1
    assert meter.dense_bytes == 2 * 201 * 2 * 64 * 4
    assert meter.bytes == 2 * 201 * 16 + 6 * 16 * 2 * 64 * 4


@pytest.mark.parametrize(
    ("nbytes", "text"), [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (2**31, "2.0 GiB")]
)
def test_amount(nbytes: int, text: str) -> None:
    assert amount(nbytes) == text


def test_every_command_is_listed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    out = capsys.readouterr().out
    for name in cli.COMMANDS:
        assert name in out
        assert importlib.import_module(f"adamas_core.cli.{name}").run
