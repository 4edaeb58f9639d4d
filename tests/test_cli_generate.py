"""The command ``adamas-core generate``, on a small random model."""

from __future__ import annotations

import io
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tiny_model import OutOf

from adamas_core.cli import generate, loading, selecting


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
    options = ["--prompt-file", str(tmp_path / "prompt.txt"), "--budget=8", "--metric=weighted"]
    options += ["--query-bits=3", "--sinks=2", "--recent=2", "--dense-layers=1", "--max-tokens=9"]
    options += ["--temperature=0.8", "--top-p=0.9", "--seed=3"]
    first = out_of("generate", *letters_model, *options)
    assert first[0] == 0
    assert out_of("generate", *letters_model, *options)[1] == first[1]
    assert out_of("generate", *letters_model, *options, "--backend=reference")[1] == first[1]


@pytest.mark.parametrize(
    "options",
    [
        ["--refine=2"],
        ["--group"],
        ["--plain"],
        ["--plain", "--group"],
        ["--centered", "--refine=3"],
        ["--plain", "--metric=manhattan", "--sinks=1", "--recent=3"],
    ],
)
def test_kinds_of_selection(letters_model: list[str], options: list[str], out_of: OutOf) -> None:
    call = ["--prompt=" + "abc def " * 20, "--budget=8", "--max-tokens=9", *options]
    status, out, err = out_of("generate", *letters_model, *call)
    assert (status, err.splitlines()[-2][:6]) == (0, "prompt")
    assert out_of("generate", *letters_model, *call, "--backend=reference")[:2] == (0, out)


# The text of the prompt is absent in these, and given by the test.
EARLY = [
    (["--budget=0"], "--budget: 0; expected at least 1"),
    (["--budget", "-1e9"], "--budget: -1e9; expected a whole number, at least 1"),
    (["--budget=4", "--sinks=5"], "expected at most budget=4"),
    (["--prompt-file=/nowhere/prompt.txt"], "--prompt-file: /nowhere/prompt.txt: No such file"),
    (["--prompt-file=/"], "/: Is a directory"),
    (["--prompt=a", "--prompt-file=/"], "--prompt-file: not allowed with argument --prompt"),
    (["--prompt=caf\udce9"], "--prompt: 'caf\\udce9'; expected text in UTF-8"),
    (["--tokenizer=/nowhere/t.bin"], "--tokenizer: /nowhere/t.bin: No such file or directory"),
    (["--temperature=-1"], "temperature=-1.0"),
    (["--temperature=nan"], "--temperature: nan; expected a finite number"),
    (["--temperature", "-inf"], "--temperature: -inf; expected a finite number"),
    (["--top-p=1.5"], "top_p=1.5"),
    (["--top-p=0"], "top_p=0.0"),
    (["--seed=-1"], "--seed: -1; expected 0 to 18446744073709551615"),
    (["--max-tokens=-5"], "--max-tokens: -5; expected at least 0"),
    (["--max-tokens=9999999999"], "--max-tokens: 9999999999; expected at least 0 and at most"),
    (["--dense-layers=-1"], "--dense-layers: -1; expected at least 0"),
    (["--attention=sparse"], "--attention: invalid choice: 'sparse'"),
    (["--backend=tpu"], "--backend: invalid choice: 'tpu'"),
    (["--metric=manhattan", "--centered"], "metric='manhattan' with centered codes"),
    (["--metric=manhattan", "--query-bits=4"], "--query-bits has no effect with --metric=manh"),
    (["--top-p=0.9"], "--top-p has no effect at --temperature=0"),
    (["--temperature=0", "--seed=0"], "--seed has no effect at --temperature=0"),
    *(
        (
            [option, "--attention=full"],
            f"{option.split('=')[0]} has no effect with --attention=full",
        )
        for option in (
            *("--budget=64", "--metric=weighted", "--query-bits=4", "--sinks=0", "--recent=1"),
            *("--refine=2", "--group", "--plain", "--centered", "--dense-layers=1"),
        )
    ),
]
LATE = [
    (["--chat"], "chat template is neither ChatML nor"),
    (["--prompt=" + "a" * 300], "do not fit the model's context of 256"),
    (["--dense-layers=9"], "--dense-layers: 9; expected 0 to 2"),
    (["--dense-layers=2147483647"], "--dense-layers: 2147483647; expected 0 to 2"),
]


@pytest.mark.parametrize(("options", "message"), EARLY)
def test_errors_come_before_the_model_is_loaded(
    letters_model: list[str],
    options: list[str],
    message: str,
    out_of: OutOf,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(loading, "load", None)
    monkeypatch.setattr(loading, "load_tokenizer", None)
    prompt = [] if options[0].startswith("--prompt") else ["--prompt=hello"]
    status, out, err = out_of("generate", *letters_model, *prompt, *options)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("adamas-core generate: ")
    assert message in err


def test_a_gpu_that_is_not_there(
    letters_model: list[str], out_of: OutOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    def absent(name: str) -> None:
        raise RuntimeError("CuPy is missing")

    monkeypatch.setattr(loading, "load", None)
    monkeypatch.setattr(selecting, "load", absent)
    status, _, err = out_of("generate", *letters_model, "--prompt=a", "--backend=gpu")
    assert status == 2
    assert err == "adamas-core generate: --backend: gpu cannot be used: CuPy is missing\n"


@pytest.mark.shim
def test_the_backend_gpu(letters_model: list[str], out_of: OutOf, device: object) -> None:
    call = ["--prompt=hello there, who are you?", "--budget=8", "--max-tokens=3"]
    expected = out_of("generate", *letters_model, *call, "--backend=reference")
    assert out_of("generate", *letters_model, *call, "--backend=gpu")[:2] == expected[:2]


@pytest.mark.parametrize(("options", "message"), LATE)
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
    status, _, err = out_of(
        "generate", f"--model={tmp_path / 'cut.bin'}", letters_model[1], "--prompt=a"
    )
    assert status == 2
    assert "cut.bin" in err
    assert "Traceback" not in err


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_prompt_from_stdin(
    letters_model: list[str], out_of: OutOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    call = ["generate", *letters_model, "--max-tokens=5"]
    expected = {text: out_of(*call, f"--prompt={text}") for text in ("hé\nllo", "")}
    assert "prompt 9 tokens" in expected["hé\nllo"][2]
    piped = io.TextIOWrapper(io.BytesIO("hé\nllo".encode()), encoding="ascii")
    for stdin, text in (
        (piped, "hé\nllo"),
        (io.TextIOWrapper(io.BytesIO("hé\r\nllo".encode()), newline="\n"), "hé\nllo"),  # as a file
        (io.TextIOWrapper(io.BytesIO(b""), encoding="ascii"), ""),
        (Terminal("not read"), ""),
        (None, ""),  # closed
    ):
        monkeypatch.setattr(sys, "stdin", stdin)
        assert out_of(*call)[:2] == expected[text][:2]


def test_a_stdin_that_is_not_utf8(
    letters_model: list[str], out_of: OutOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "load", None)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"caf\xe9")))
    status, _, err = out_of("generate", *letters_model)
    assert status == 2
    assert err == (
        "adamas-core generate: stdin is not UTF-8: the byte 0xe9 at 3 is part of no character\n"
    )


def test_a_stdin_is_read_only_for_the_prompt(
    letters_model: list[str], out_of: OutOf, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "prompt.txt").write_text("abc")
    monkeypatch.setattr(sys, "stdin", None)
    expected = out_of("generate", *letters_model, "--prompt=abc", "--max-tokens=3")[1]
    monkeypatch.setattr(sys, "stdin", io.StringIO("other"))
    for option in ("--prompt=abc", f"--prompt-file={tmp_path / 'prompt.txt'}"):
        assert out_of("generate", *letters_model, option, "--max-tokens=3")[1] == expected
    assert sys.stdin.read() == "other"
    assert out_of("generate", *letters_model, "--budget=0", "--max-tokens=3")[0] == 2


def test_a_prompt_file_that_is_not_utf8(
    letters_model: list[str], tmp_path: Path, out_of: OutOf
) -> None:
    file = tmp_path / "latin1.txt"
    file.write_bytes(b"caf\xe9")
    status, _, err = out_of("generate", *letters_model, f"--prompt-file={file}")
    assert status == 2
    assert f"{file} is not UTF-8: the byte 0xe9 at 3" in err


def test_a_share_of_time_is_at_most_all_of_it(
    letters_model: list[str], out_of: OutOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The prompt is one token here, so that the prefill is a step of one token too."""
    seen: list[dict[str, float]] = []
    real = generate.report
    monkeypatch.setattr(
        generate, "report", lambda *args: (seen.append(vars(args[4]).copy()), real(*args))
    )
    status, _, err = out_of("generate", *letters_model, "--prompt=", "--max-tokens=6")
    assert status == 0
    assert "prompt 1 tokens" in err
    assert seen[0]["calls"] == 2 * 5  # layers, and tokens after the first one
    share = re.search(r"takes (\d+)% of", err)
    assert share is not None
    assert int(share[1]) <= 100


def test_no_tokens(letters_model: list[str], out_of: OutOf) -> None:
    status, out, err = out_of("generate", *letters_model, "--prompt=hello", "--max-tokens=0")
    assert (status, out) == (0, "\n")
    assert "then 0 tokens" in err


def test_an_interrupted_text_ends_its_line(
    letters_model: list[str], out_of: OutOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cut(*args: object, **options: object) -> Iterator[int]:
        yield from (260, 261)
        raise KeyboardInterrupt

    monkeypatch.setattr(generate, "generate", cut)
    status, out, err = out_of("generate", *letters_model, "--prompt=hello")
    assert (status, out, err) == (130, "ab\n", "adamas-core generate: interrupted\n")


def test_without_rich(
    letters_model: list[str], monkeypatch: pytest.MonkeyPatch, out_of: OutOf
) -> None:
    monkeypatch.setitem(sys.modules, "rich.console", None)
    status, _, err = out_of("generate", *letters_model, "--prompt=hello")
    assert status == 2
    assert 'rich is missing: pip install "adamas-core[llama]"' in err
