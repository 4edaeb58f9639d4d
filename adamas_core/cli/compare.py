"""Compare ways to choose tokens: how far each moves a model from its full attention.

Each result is written to --out at once, and an interrupted run continues from there.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..lab import answer_rows, answers, comparing, results
from ..lab.records import Record, settings
from ..lab.reports import environment, write_json
from ..lab.selectors import SELECTORS
from ..lab.tasks import suite
from ..lab.texts import BUILT_IN, named
from ..lab.variants import ablations, variants
from ..llama import Llama, Tokenizer, fetch, load, load_tokenizer
from . import tables
from .progress import bar, steps

# The options that are not given, without and with --quick.
DEFAULTS: dict[str, Any] = {
    "text": list(BUILT_IN),
    "context": 8192,
    "positions": 512,
    "budgets": [16, 32, 64, 128, 256, 512, 1024],
    "contexts": [1024, 2048, 4096, 8192],
    "examples": 2,
    "selectors": [name for name in SELECTORS if name != "full"],
}
QUICK: dict[str, Any] = {
    "text": list(BUILT_IN),
    "context": 1024,
    "positions": 64,
    "budgets": [32, 128],
    "contexts": [],
    "examples": 1,
    "selectors": ["exact", "streaming-llm", "quest", "paper-quartiles", "adamas"],
}
HEAT = "relative_mass_by_layer_and_head"


def arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--model", type=Path, help="a GGUF file or a Hugging Face folder (SmolLM2-135M, fetched)")
    add("--tokenizer", type=Path, help="the tokenizer, if it is not beside the model")
    add(
        "--text",
        action="append",
        help=f"{', '.join(BUILT_IN)} or a UTF-8 file; may be repeated (all three)",
    )
    add("--context", type=int, help="tokens of the window in which budgets are compared (8192)")
    add("--positions", type=int, help="last tokens of a window, which are decoded (512)")
    add("--budgets", type=int, nargs="+", help="tokens that a query head attends to (16 to 1024)")
    add("--contexts", type=int, nargs="*", help="compared at the budget --at (1024 to 8192)")
    add("--at", type=int, default=128, help="budget for contexts and ablations (128)")
    add("--selectors", nargs="+", help=f"of {', '.join(SELECTORS)} (all but full)")
    add("--ablations", action="store_true", help="also changes of the method, at the budget --at")
    add("--tasks", action="store_true", help="tasks with exact answers, instead of texts")
    add("--out", type=Path, default=Path("adamas-compare"), help="folder for results")
    add("--examples", type=int, help="prompts per task, length and depth (2)")
    add("--quick", action="store_true", help="a short context, few selectors: under two minutes")


def run(args: argparse.Namespace) -> int:
    for name, value in (QUICK if args.quick else DEFAULTS).items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    (run_tasks if args.tasks else run_texts)(args)
    print(f"written to {args.out}")
    return 0


def run_texts(args: argparse.Namespace) -> None:
    """Compare on texts; show the table, and write results.json and plots from the whole record."""
    chosen = variants(args.selectors)
    plan = [(args.context, budget, variant) for budget in args.budgets for variant in chosen]
    plan += [(context, args.at, variant) for context in args.contexts for variant in chosen]
    if args.ablations:
        plan += [(args.context, args.at, variant) for variant in ablations()]
    texts = [named(name) for name in args.text]
    path = args.model or fetch.smollm2()
    record = Record(args.out / "cells.jsonl", settings(path, args.positions), comparing.KEY)
    model, tokenizer = loaded(path, args.tokenizer)
    with steps() as move:
        comparing.compare(model, tokenizer, texts, plan, args.positions, record, move)

    cells = list(record)
    rows = results.pooled(cells)
    report = {
        **environment(path, command()),
        "positions": args.positions,
        "rows": [{k: v for k, v in row.items() if k != HEAT} for row in rows],  # cells have it
        "cells": cells,
    }
    write_json(args.out / "results.json", report)
    tables.quality(rows, args.at, cells)
    draw(lambda plots: plots.quality(cells, args.out, args.context, args.at))


def run_tasks(args: argparse.Namespace) -> None:
    """Judge answers; show the table, and write tasks.json and the plot from the whole record.

    Budgets are --budgets and lengths are --contexts.
    """
    path = args.model or fetch.smollm2()
    model, tokenizer = loaded(path, args.tokenizer)
    record = Record(args.out / "tasks.jsonl", settings(path, args.positions), answers.KEY)
    prompts = suite(args.contexts, args.examples, answers.counter(tokenizer))
    chosen = variants(args.selectors)
    runs = [(answers.FULL, None), *((v, budget) for v in chosen for budget in args.budgets)]
    with steps() as move:
        answers.judge(model, tokenizer, prompts, runs, record, move)

    rows = answer_rows.pooled(record)
    solved = [row for row in rows if row["solved"]]
    write_json(args.out / "tasks.json", {**environment(path, command()), "rows": rows})
    tables.answers(rows)
    draw(lambda plots: plots.tasks(solved, args.out))


def loaded(path: Path, tokenizer: Path | None) -> tuple[Llama, Tokenizer]:
    """The model and its tokenizer."""
    with bar("Loading the model"):
        return load(path), load_tokenizer(tokenizer or path)


def command() -> str:
    """The command line of this run."""
    return " ".join(["adamas-core", *sys.argv[1:]])


def draw(plot: Callable[[Any], None]) -> None:
    """Call `plot` with the module of plots, or print one sentence if matplotlib is missing."""
    if importlib.util.find_spec("matplotlib") is None:
        missing = 'no plots: matplotlib is missing (pip install "adamas-core[compare]")'
        print(missing, file=sys.stderr)
        return
    from ..lab import plots

    plot(plots)
