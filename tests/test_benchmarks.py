"""The whole paths of the benchmarks on tiny sizes, whatever the times are."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lab_oracles import made_cell

from adamas_core.lab.results import pooled

ROOT = Path(__file__).resolve().parent.parent


DECODE = "--cases 4/2/300 2x2/1/100 --head-dim 32 --budget 16 --repeats 1"
SELECT = "--cases 4/2/300 --head-dim 32 --budget 16 --repeats 1"
# The arguments of a script, the libraries that it needs, and the result that it writes.
CPU = [
    (f"cpu_decode.py table {DECODE}", ["matplotlib"], "cpu_decode-table-float32"),
    (f"cpu_decode.py length {DECODE}", ["matplotlib", "ml_dtypes"], "cpu_decode-length-bfloat16"),
    (f"cpu_decode.py budget --budgets 8 64 {DECODE}", ["matplotlib"], "cpu_decode-budget-float32"),
    (f"cpu_decode.py stages {DECODE}", ["matplotlib"], "cpu_decode-stages-float32"),
    (f"cpu_decode.py threads {DECODE}", ["matplotlib"], "cpu_decode-threads-float32"),
    (f"cpu_decode.py options {DECODE}", ["matplotlib"], "cpu_decode-options-float32"),
    (f"cpu_decode.py shapes {DECODE}", ["matplotlib"], "cpu_decode-shapes-float32"),
    (f"cpu_select.py peers {SELECT}", ["torch"], "cpu_select-peers"),
    (f"cpu_select.py orders {SELECT}", ["torch"], "cpu_select-orders"),
    ("cpu_call.py --repeats 1 --busy 0", [], "cpu_call"),
    ("cpu_engines.py --cases 4/2/70 --head-dim 32 --budget 16 --repeats 1", [], "cpu_engines"),
    ("cpu_gather.py --tokens 200 --budgets 8 --repeats 1", [], "cpu_gather"),
    ("cpu_score.py --tokens 640 --repeats 1", [], "cpu_score"),
    (
        "cpu_tail.py --cases 4/2/300 --head-dim 32 --budget 16 --tails 8 64 --repeats 1",
        [],
        "cpu_tail",
    ),
]


@pytest.mark.parametrize(("command", "libraries", "result"), CPU, ids=[x[0] for x in CPU])
def test_on_the_cpu(
    command: str, libraries: list[str], result: str, tmp_path: Path, monkeypatch: Any
) -> None:
    for name in libraries:
        pytest.importorskip(name)
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    harness = importlib.import_module("harness")
    monkeypatch.setattr(harness, "_evict", np.ones(1, np.int64))  # times are not looked at
    monkeypatch.setattr(harness.time, "sleep", lambda seconds: None)
    script, *options = command.split()
    monkeypatch.setattr(sys, "argv", [script, *options, f"--out={tmp_path}"])
    importlib.import_module(script.removesuffix(".py")).main()
    written = json.loads((tmp_path / f"{result}.json").read_text())
    assert written["rows"]
    assert all(row["ms"] is not None for row in written["rows"])
    assert (tmp_path / f"{result}.md").read_text().startswith("|")


def test_every_script_and_figure_of_the_cpu_runs(monkeypatch: Any) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("matplotlib")
    run = {tuple(command.split()[:2]) for command, _, _ in CPU}
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    for path in sorted((ROOT / "benchmarks").glob("cpu_*.py")):
        figures = getattr(importlib.import_module(path.stem), "FIGURES", None)
        for figure in figures or ["--"]:
            assert any(name == path.name and a.startswith(figure) for name, a in run), figure


@pytest.fixture
def quality_tables(monkeypatch: Any) -> Any:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return importlib.import_module("quality_tables")


def test_the_tables_of_quality_are_those_of_the_records(quality_tables: Any) -> None:
    page = quality_tables.PAGE.read_text(encoding="utf-8")
    found = quality_tables.tables()
    assert quality_tables.filled(page, found) == page
    for name in found:
        assert page.count(f"<!-- table: {name} -->") == 1
    assert page.count("<!-- end of table -->") == len(found)


def test_only_a_table_between_comments_is_replaced(quality_tables: Any) -> None:
    page = "a\n<!-- table: x -->\n\nold\n\n<!-- end of table -->\nb\n"
    new = quality_tables.filled(page, {"x": "| new |"})
    assert new == page.replace("old", "| new |")
    with pytest.raises(ValueError, match="no table is called 'x'; expected one of"):
        quality_tables.filled(page, {"y": ""})


def test_tables_of_forms(quality_tables: Any) -> None:
    """A form has no mass, and no row where that is the figure."""
    row = {**pooled([made_cell("a", 0.25, 1, 32, form=True)])[0], "selector": "tail-1024"}
    table = list(quality_tables.by_tail([row]))
    assert table[2] == f"| 32 |  |  |  | 0.2500, {quality_tables.perplexity(row).split()[0]} |  |"
    swept = quality_tables.swept([row], ["tail-1024"], "budget", quality_tables.both_masses)
    assert len(list(swept)) == 2
    swept = quality_tables.swept([row], ["tail-1024"], "budget", quality_tables.kl_and_mass)
    assert list(swept)[2] == "| tail of 64 | 0.250, - |"
    (told,) = list(quality_tables.every([row]))[2:]
    assert told.count(" - ") == 4
    (told,) = list(quality_tables.equal_bytes([row]))[2:]
    assert told.startswith("| tail of 64 | 32 | 7 | 100.0% | 7 | 0.2500 ± 0.0000 |")
    older = {**row, "selector": "exact", "budget": 128, "bytes_of_rows": None}
    (told,) = list(quality_tables.equal_bytes([older]))[2:]
    assert told.startswith(f"| tail of 64 | 128 | {7 * 128 / 64:.0f} |")


def test_results_of_a_folder_replace_those_of_a_record(tmp_path: Path, monkeypatch: Any) -> None:
    pytest.importorskip("matplotlib")
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    merge = importlib.import_module("quality_merge")
    new, record = tmp_path / "new", tmp_path / "record"
    for folder, cells in (
        (record, [made_cell("a", 1, 1), made_cell("b", 1, 2)]),
        (new, [made_cell("b", 0.5, 3), made_cell("b", 0.25, 4, form=True)]),
    ):
        folder.mkdir()
        report = {"model": "m", "positions": 32, "rows": [], "cells": cells}
        (folder / "results.json").write_text(json.dumps(report))
        rows = [dict.fromkeys(merge.OF_TASKS, folder.name) | {"solved": False}]
        (folder / "tasks.json").write_text(json.dumps({"rows": rows}))
    monkeypatch.setattr("sys.argv", ["quality_merge.py", str(new), str(record)])
    merge.main()
    found = json.loads((record / "results.json").read_text())
    told = [(c["text"], c["selector"], c["kl"][0]) for c in found["cells"]]
    assert told == [("a", "quest", 1), ("b", "quest", 0.5), ("b", "tail-64", 0.25)]
    assert [row["kl"][0] for row in found["rows"]] == [0.75, 0.25]
    assert (record / "front.png").exists()
    assert len(json.loads((record / "tasks.json").read_text())["rows"]) == 2
    (new / "results.json").write_text(json.dumps({"model": "m", "positions": 64}))
    with pytest.raises(ValueError, match=r"positions = 64 and .* has 32; expected equal ones"):
        merge.merge_texts(new, record)


@pytest.fixture
def benchmark(monkeypatch: Any) -> Any:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import gpu_decode

    return gpu_decode


def test_dry(device: Any) -> None:
    """The command itself: kernels through the shim, JSON, table and plot."""
    if device.__name__ == "cupy":
        pytest.skip("there is a GPU to run it on")
    done = subprocess.run(
        [sys.executable, "benchmarks/gpu_decode.py", "--dry"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    results = [json.loads(line) for line in lines if line.startswith("{")]
    assert len(results) == 2 * 2 * 2 * 4
    assert {name for result in results for name in result["ms"]} == {
        "step",
        "selection",
        "copy_of_codes",
    }
    for codes in ("tail", "centered", "plain"):
        start = f"| 4/1 | 2 | 200 | 16 | weighted | {codes} | - |"
        assert sum(line.startswith(start) for line in lines) == 1
    assert lines[-1].startswith("dry: every shape ran")


def test_check(device: Any, tmp_path: Path) -> None:
    """All phases of the check through the shim, but those of compute-sanitizer."""
    if device.__name__ == "cupy":
        pytest.skip("there is a GPU to run it on")
    done = subprocess.run(
        [
            *(sys.executable, "benchmarks/gpu_check.py", "--dry"),
            *("--out", str(tmp_path), "--processes", "0"),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    results = json.loads((tmp_path / "gpu_check.json").read_text())["phases"]
    assert [(r["phase"], r["status"]) for r in results] == [
        (name, 0) for name in ("kernel", "tests", "large", "benchmark", "kernels")
    ], done.stdout
    assert done.returncode == 0
    assert (tmp_path / "large.log").read_text().count("ok ") == 3
    assert len(json.loads((tmp_path / "gpu_kernels.json").read_text())) == 3


def test_check_of_a_phase_that_fails(monkeypatch: Any, tmp_path: Path) -> None:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    check = importlib.import_module("gpu_check")
    code = "import os; print('end'); exit(int(os.environ.get('ADAMAS_REQUIRE_GPU', 7)))"
    for name, seconds, command, status in (
        ("fails", 60, [sys.executable, "-c", code], 1),
        ("late", 0, [sys.executable, "-c", "import time; time.sleep(60)"], "stopped after 0 s"),
        ("none", 60, ["no-such-program"], "[Errno 2] No such file or directory: 'no-such-program'"),
    ):
        result = check.run(check.Phase(name, seconds, command), tmp_path, False)
        assert result["status"] == status
    assert check.run(check.Phase("dry", 60, [sys.executable, "-c", code]), tmp_path, True) == {
        "phase": "dry",
        "status": 7,
        "seconds": pytest.approx(0, abs=60),
        "end": ["end"],
    }


def test_report_of_times(benchmark: Any, tmp_path: Path) -> None:
    """Table and plot from a JSON whose numbers are made up here."""
    results = [
        {
            **benchmark.Shape(1, 32, 8, tokens, 128, "weighted", "centered")._asdict(),
            "layers": 2,
            "ms": {
                "step": 0.01,
                "selection": 0.005,
                "copy_of_codes": 0.006,
                "dense_sdpa_gqa_math": None,
                "dense_sdpa_grouped_flash_attention": tokens / 2e5,
                "dense_flashinfer": tokens / 1e5,
                "torch_topk_of_exact_scores": 1e-9,
            },
        }
        for tokens in (4096, 32768)
    ]
    path = tmp_path / "gpu_decode_made_up.json"
    path.write_text(json.dumps({"device": "none", "date": "never", "results": results}))
    benchmark.main(["--report", str(path)])
    last = path.with_suffix(".md").read_text().splitlines()[-1]
    # Codes of 8 heads at 37 bytes per token, and 128 rows of k and v at 512 bytes for 32 heads.
    step, dense = 8 * 32768 * 37 + 32 * 128 * 512, 8 * 32768 * 512
    assert last == (
        "| 32/8 | 1 | 32768 | 128 | weighted | centered | 0.0100 "
        "| 0.1638 dense_sdpa_grouped_flash_attention | 16.4 | 0.0050 | 60% "
        f"| {step / 1e6:.1f} | {dense / 1e6:.1f} |"
    )
    assert path.with_suffix(".svg").is_file() == (find_spec("matplotlib") is not None)
