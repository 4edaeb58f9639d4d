"""The command ``adamas-core compare``."""

from __future__ import annotations

import argparse
import errno
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_model import LETTERS_CONFIG, OutOf

from adamas_core import cli
from adamas_core.cli import compare, loading
from adamas_core.lab import answer_rows, answers, comparing, offset_keys, tasks
from adamas_core.lab.measuring import Reading
from adamas_core.lab.metrics import Captured
from adamas_core.lab.selectors import SELECTORS, Form
from adamas_core.lab.variants import ablations
from adamas_core.llama import fetch


@pytest.fixture
def command(letters_model: list[str], tmp_path: Path) -> list[str]:
    text = tmp_path / "text.txt"
    rng = np.random.default_rng(0)
    text.write_text(" ".join("".join(rng.choice(list("abcdefgh"), 5)) for _ in range(200)))
    return [
        "compare",
        *letters_model,
        "--quick",
        f"--text={text}",
        "--context=128",
        "--positions=32",
    ]


def run(out_of: OutOf, command: list[str], out: Path) -> dict[str, Any]:
    status, _, err = out_of(*command, f"--out={out}")
    assert status == 0, err
    found: dict[str, Any] = json.loads((out / "results.json").read_text())
    for result in (*found["rows"], *found["cells"]):
        del result["ms_to_choose"]
    return found


def test_quick_writes_table_json_and_plots(
    command: list[str],
    tmp_path: Path,
    out_of: OutOf,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("matplotlib")
    out = tmp_path / "out"
    more = ["--budgets", "8", "16", "--contexts", "64", "--at=8"]
    status, printed, _ = out_of(*command, *more, f"--out={out}")
    assert status == 0
    assert "Context 128, budget 8" in printed
    assert "Context 64, budget 8" in printed
    assert "exact top-k" in printed
    found = json.loads((out / "results.json").read_text())
    assert len(found["cells"]) == 3 * len(compare.QUICK)
    assert {"command", "date", "adamas_core", "numpy", "model", "machine"} <= set(found)
    oracle = [row for row in found["rows"] if row["selector"] == "exact"]
    assert [row["relative_mass"][0] for row in oracle] == [1, 1, 1]
    for name in ("front", "budgets", "contexts", "heat", "layers", "selectors"):
        assert (out / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    monkeypatch.setattr(compare.importlib.util, "find_spec", lambda name: None)
    status, printed, err = out_of(*command, *more, f"--out={out}")
    assert status == 0
    assert 'no plots: matplotlib is missing (pip install "adamas-core[compare]")' in err


def test_an_interrupted_run_goes_on(
    command: list[str],
    tmp_path: Path,
    out_of: OutOf,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    command = [*command, "--budgets", "8", "16", "--selectors", "exact", "quest", "adamas"]
    whole = run(out_of, command, tmp_path / "whole")
    real, calls = Reading.captured, []

    def cut(self: Reading, *args: Any) -> Captured:
        calls.append(args)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return real(self, *args)

    monkeypatch.setattr(Reading, "captured", cut)
    assert out_of(*command, f"--out={tmp_path / 'cut'}")[0] == 130
    assert not (tmp_path / "cut" / "results.json").exists()
    resumed = run(out_of, command, tmp_path / "cut")
    assert len(calls) == 4 + 3
    assert resumed["rows"] == whole["rows"]
    assert resumed["cells"] == whole["cells"]


def test_ablations_on_the_command_line(command: list[str], tmp_path: Path, out_of: OutOf) -> None:
    more = ["--selectors", "quest", "--budgets", "8", "--at=24", "--ablations"]
    found = run(out_of, [*command, *more], tmp_path / "out")
    told = [(row["selector"], row["budget"]) for row in found["rows"]]
    assert told == [("quest", 8), *((variant.key, 24) for variant in ablations())]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--selectors", "nearest"],
            "no selector is called 'nearest'; expected one of full, exact",
        ),
        (["--context=0"], "--context: 0; expected at least 1"),
        (["--positions=128"], "--positions: 128; expected fewer than 128, the short"),
        (["--contexts", "64", "32"], "--positions: 32; expected fewer than 32, the short"),
        (["--positions=8"], "--positions: 8; expected at least 16"),
        (["--text=/nowhere/text.txt"], "--text: /nowhere/text.txt: No such file; expected one of"),
        (["--text=/"], "/: Is a directory"),
        (["--text=pydoc", "--text=pydoc"], "--text: two texts are called pydoc"),
        (["--budgets", "0"], "--budgets: 0; expected at least 1"),
        (["--budgets", "8", "nan"], "--budgets: nan; expected a whole number"),
        (["--budgets"], "--budgets: expected at least one argument"),
        (["--contexts", "-1"], "--contexts: -1; expected at least 1"),
        (["--at=-1"], "--at: -1; expected at least 1"),
        (["--examples=2"], "--examples has no effect without --tasks"),
        (["--tasks"], "--text has no effect with --tasks"),
        (["--offsets"], "--model has no effect with --offsets"),
        (["--offsets", "--tasks"], "--tasks: not allowed with argument --offsets"),
        (["--out="], "--out: empty; expected a path"),
        (["--out=/dev/null"], "/dev/null: "),
        (["--out=/dev/null/out"], "/dev/null/out: Not a directory"),
        (["--model=/nowhere/m.gguf"], "--model: /nowhere/m.gguf: No such file"),
    ],
)
def test_errors_come_before_the_model_is_loaded(
    command: list[str],
    tmp_path: Path,
    options: list[str],
    message: str,
    out_of: OutOf,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(loading, "load", None)
    monkeypatch.setattr(loading, "load_tokenizer", None)
    status, out, err = out_of(*command, f"--out={tmp_path / 'out'}", *options)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("adamas-core compare: ")
    assert message in err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--context=9000"], "a context of 9000 is more than the 8192 of the model SmolLM2-135M"),
        (["--contexts", "9000"], "a context of 9000 is more than the 8192"),
        (["--model=gemma3-270m", "--contexts", "40000"], "40000 is more than the 32768"),
        (["--tasks", "--contexts", "9000"], "a context of 9000 is more than the 8192"),
        (["--tasks", "--text=pydoc"], "--text has no effect with --tasks"),
        (["--tasks", "--ablations"], "--ablations has no effect with --tasks"),
        (["--tasks", "--at=8"], "--at has no effect with --tasks"),
        (["--tasks", "--context=8"], "--context has no effect with --tasks"),
        (["--tasks", "--positions=64"], "--positions has no effect with --tasks"),
        (["--offsets", "--context=64"], "--context has no effect with --offsets"),
        (["--offsets", "--contexts", "64"], "--contexts has no effect with --offsets"),
        (["--offsets", "--model=gemma3-270m"], "--model has no effect with --offsets"),
        (["--offsets", "--text=pydoc"], "--text has no effect with --offsets"),
        (["--offsets", "--selectors", "nearest"], "no selector is called 'nearest'"),
        (["--offsets", "--selectors", "exact", "tail-64"], "tail-64 is a form of attention, and"),
        (["--offsets", "--out=/dev/null/out"], "/dev/null/out: Not a directory"),
        (["--context=16"], "--context: 16; expected at least 17"),
        (["--contexts", "128", "16"], "--contexts: 16; expected at least 17"),
        (["--out=/dev/null/out"], "/dev/null/out: Not a directory"),
        (["--selectors", "nearest"], "no selector is called 'nearest'"),
    ],
)
def test_errors_come_before_the_download(
    tmp_path: Path,
    options: list[str],
    message: str,
    out_of: OutOf,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(fetch, "fetch", None)
    status, _, err = out_of("compare", f"--out={tmp_path / 'out'}", *options)
    assert (status, err.count("\n")) == (2, 1)
    assert message in err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("tasks", [False, True])
def test_a_context_beyond_the_model(
    letters_model: list[str], command: list[str], tmp_path: Path, out_of: OutOf, tasks: bool
) -> None:
    if tasks:
        command = ["compare", *letters_model, "--quick", "--tasks"]
    limit = LETTERS_CONFIG["max_position_embeddings"]
    status, _, err = out_of(*command, "--contexts", "512", f"--out={tmp_path / 'out'}")
    assert status == 2
    assert f"a context of 512 is more than the {limit} of the model model.bin" in err


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--context=128"], (128, (), 64, (16, 32, 64), 64)),
        (["--context=20"], (20, (), 16, (16,), 16)),
        ([], (256, (), 128, (16, 32, 64, 128), 128)),
        (["--contexts", "128", "64"], (256, (128, 64), 32, (16, 32, 64, 128), 128)),
        (["--budgets", "8"], (256, (), 128, (8,), 8)),
        (["--quick", "--at=5"], (256, (), 64, (32, 128), 5)),
    ],
)
def test_defaults_follow_from_the_given_sizes_and_the_model(
    letters_model: list[str],
    options: list[str],
    expected: tuple[Any, ...],
    out_of: OutOf,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """The model's context is 256, below most defaults."""
    seen: list[Any] = []
    monkeypatch.setattr(comparing, "compare", lambda *args: seen.extend(args[3:5]))
    monkeypatch.setattr(compare.tables, "quality", lambda rows, at, cells: None)
    monkeypatch.setattr(compare, "drawn", lambda module, plot: None)
    call = ["compare", *letters_model, "--selectors", "exact", f"--out={tmp_path}"]
    assert out_of(*call, *options)[0] == 0
    context, contexts, positions, budgets, at = expected
    plan, found = seen
    assert found == positions
    cells = [(each, budget) for each, budget, _ in plan]
    assert cells == [(context, b) for b in budgets] + [(n, at) for n in contexts]


@pytest.mark.parametrize("quick", [False, True])
def test_forms_are_usual_but_not_with_offsets(quick: bool) -> None:
    texts, offsets = (
        compare.usual(argparse.Namespace(quick=quick, offsets=offsets)) for offsets in (False, True)
    )
    forms = [name for name in texts if isinstance(SELECTORS[name], Form)]
    assert "tail-256" in forms
    assert [name for name in texts if name not in forms] == offsets


def test_offsets_need_no_model(
    out_of: OutOf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetch, "fetch", None)
    monkeypatch.setattr(loading, "load", None)
    monkeypatch.setattr(offset_keys, "S", 512)
    monkeypatch.setattr(offset_keys, "NORMS", (0, 22))
    call = ["compare", "--offsets", "--quick", f"--out={tmp_path}"]
    names = ["exact", "h2o", "adamas"]
    status, printed, err = out_of(*call, "--selectors", *names, "--budgets", "8", "32")
    assert status == 0, err
    assert "Mass relative to the exact top-k's, budget 8" in printed
    assert "slow, 22" in printed
    found = json.loads((tmp_path / "offsets.json").read_text())
    assert {"command", "date", "adamas_core", "numpy", "machine"} <= set(found)
    assert "model" not in found
    rows = {(row["pairs"], row["norm"], row["selector"], row["budget"]) for row in found["rows"]}
    assert len(rows) == len(found["rows"]) == 2 * 2 * 3 * 2
    assert {row[2] for row in rows} == set(names)


def test_texts_that_are_refused(command: list[str], tmp_path: Path, out_of: OutOf) -> None:
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "text.txt").write_text("abc")
    status, _, err = out_of(*command, f"--text={tmp_path / 'more' / 'text.txt'}")
    assert (status, err) == (
        2,
        "adamas-core compare: --text: two texts are called text; expected different names\n",
    )
    (tmp_path / "latin1.txt").write_bytes(b"caf\xe9")
    status, _, err = out_of(*command, f"--text={tmp_path / 'latin1.txt'}")
    assert status == 2
    assert "latin1.txt is not UTF-8: the byte 0xe9 at 3" in err


def test_a_text_of_any_name(command: list[str], tmp_path: Path, out_of: OutOf) -> None:
    """Names that rich reads as markup, matplotlib as math, and that are not UTF-8."""
    named = tmp_path / "[_a]$x^$ :smile: \udce9.txt"
    (tmp_path / "text.txt").rename(named)
    command = [option for option in command if not option.startswith("--text")]
    options = [f"--text={named}", "--selectors", "exact", "quest", "--budgets", "8", "16"]
    status, printed, err = out_of(*command, *options, f"--out={tmp_path / 'out'}")
    assert (status, err.count("Traceback")) == (0, 0), err
    assert "[_a]$x^$ :smile: ?" in printed


def test_a_full_disk(
    command: list[str], tmp_path: Path, out_of: OutOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, text: str, **options: Any) -> None:
        if path.name == "results.json":
            raise OSError(errno.ENOSPC, "No space left on device")
        write(path, text, **options)

    write = Path.write_text
    monkeypatch.setattr(Path, "write_text", full)
    options = ["--selectors", "exact", "--budgets", "8", f"--out={tmp_path / 'out'}"]
    status, _, err = out_of(*command, *options)
    assert (status, err) == (
        2,
        f"adamas-core compare: {tmp_path / 'out' / 'results.json'}: No space left on device\n",
    )


def test_other_settings_in_the_same_folder(
    command: list[str], tmp_path: Path, out_of: OutOf
) -> None:
    command = [*command, "--selectors", "exact", "--budgets", "8", f"--out={tmp_path / 'out'}"]
    assert cli.main(command) == 0
    status, _, err = out_of(*command, "--positions=40")
    assert status == 2
    assert "holds results of positions = 32, now it is 40: choose another --out" in err
    (tmp_path / "text.txt").write_text("another text of letters " * 60)
    status, _, err = out_of(*command)
    assert status == 2
    assert "of window = " in err


def test_tasks(
    letters_model: list[str],
    tmp_path: Path,
    out_of: OutOf,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        tasks, "OTHERS", {tasks.word_counts: 60, tasks.key_value: 60, tasks.induction: 257}
    )  # the last does not fit
    monkeypatch.setattr(tasks, "DEPTHS", (0.0, 1.0))
    monkeypatch.setattr(answer_rows, "SOLVED", 0.0)
    command = [
        "compare",
        *letters_model,
        "--tasks",
        "--quick",
        "--contexts",
        "100",
        "--budgets",
        "8",
    ]
    command += ["--selectors", "exact", "adamas", f"--out={tmp_path}"]
    status, printed, err = out_of(*command)
    assert status == 0, err
    assert "passkey, 100" in printed
    found = json.loads((tmp_path / "tasks.json").read_text())
    assert len(found["rows"]) == 4 * 3
    assert {row["selector"] for row in found["rows"]} == {"full", "exact", "adamas"}
    assert {row["length"] for row in found["rows"]} == {60, 100}
    monkeypatch.setattr(answers, "Prefix", None)  # nothing is left to read
    assert out_of(*command)[0] == 0
    assert json.loads((tmp_path / "tasks.json").read_text())["rows"] == found["rows"]


def test_tasks_that_are_all_too_long(
    letters_model: list[str], tmp_path: Path, out_of: OutOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tasks, "OTHERS", {tasks.word_counts: 257})
    status, _, err = out_of("compare", *letters_model, "--tasks", f"--out={tmp_path}")
    assert status == 2
    assert "--tasks: the context of the model, 256, is shorter than any task" in err
