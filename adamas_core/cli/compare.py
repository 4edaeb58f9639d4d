"""Compare ways to choose tokens: how far each moves a model from its full attention.

Each result is written to --out at once, and an interrupted run continues from there.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from ..lab import answer_rows, answers, comparing, results
from ..lab.metrics import BATCHES
from ..lab.records import Record, settings
from ..lab.reports import environment, write_json
from ..lab.selectors import SELECTORS
from ..lab.tasks import suite
from ..lab.texts import BUILT_IN, Text, named
from ..lab.variants import ablations, variants
from ..llama import fetch
from ..llama.fetch import FetchedModel
from . import tables, terminal
from .loading import NAMES, fetched, loaded, model_name
from .parser import existing, nonempty, whole, writable
from .progress import steps

# The options that are not given, without and with --quick.
DEFAULTS: dict[str, Any] = {
    "text": list(BUILT_IN),
    "context": 8192,
    "positions": 512,
    "at": 128,
    "budgets": [16, 32, 64, 128, 256, 512, 1024],
    "contexts": [1024, 2048, 4096, 8192],
    "examples": 2,
    "selectors": [name for name in SELECTORS if name != "full"],
}
QUICK: dict[str, Any] = {
    "text": list(BUILT_IN),
    "context": 1024,
    "positions": 64,
    "at": 128,
    "budgets": [32, 128],
    "contexts": [],
    "examples": 1,
    "selectors": ["exact", "streaming-llm", "quest", "paper-quartiles", "adamas"],
}
# Options that the other kind of run does not read.
OF_TEXTS = ("text", "context", "at", "ablations")
OF_TASKS = ("examples",)
HEAT = "relative_mass_by_layer_and_head"


def arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    model = f"a GGUF file, a Hugging Face folder, or {NAMES}, fetched ({fetch.DEFAULT})"
    add("--model", type=model_name, default=fetch.MODELS[fetch.DEFAULT], help=model)
    add("--tokenizer", type=existing, help="the tokenizer, if it is not beside the model")
    add(
        "--text",
        action="append",
        help=f"{', '.join(BUILT_IN)} or a UTF-8 file; may be repeated (all three)",
    )
    add("--context", type=whole(1), help="tokens of the window for all budgets (8192)")
    add("--positions", type=whole(BATCHES), help="last tokens of a window, which are decoded (512)")
    budgets = "tokens that a query head attends to (16 to 1024)"
    add("--budgets", type=whole(1), nargs="+", help=budgets)
    add("--contexts", type=whole(1), nargs="*", help="compared at the budget --at (1024 to 8192)")
    add("--at", type=whole(1), help="budget for contexts and ablations (128)")
    add("--selectors", nargs="+", help=f"of {', '.join(SELECTORS)} (all but full)")
    add("--ablations", action="store_true", help="also changes of the method, at the budget --at")
    add("--tasks", action="store_true", help="tasks with exact answers, instead of texts")
    add("--out", type=nonempty, default=Path("adamas-compare"), help="folder for results")
    add("--examples", type=whole(1), help="with --tasks: prompts per task, length and depth (2)")
    add("--quick", action="store_true", help="a short context, few selectors: under two minutes")


def run(args: argparse.Namespace) -> int:
    require_one_kind(args)
    for name, value in (QUICK if args.quick else DEFAULTS).items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    args.selectors = variants(list(dict.fromkeys(args.selectors)))
    terminal.console()  # without rich the command ends here, and not after the download
    (run_tasks if args.tasks else run_texts)(args)
    print(f"written to {args.out}")
    return 0


def require_one_kind(args: argparse.Namespace) -> None:
    """Reject options of texts with --tasks, and options of tasks without it."""
    wrong = OF_TEXTS if args.tasks else OF_TASKS
    for name in wrong:
        if getattr(args, name) not in (None, False):
            raise ValueError(
                f"--{name} with --tasks; expected one of them"
                if args.tasks
                else f"--{name} without --tasks; expected both or none of them"
            )


def run_texts(args: argparse.Namespace) -> None:
    """Compare on texts; show the table, and write results.json and plots from the whole record."""
    contexts = [args.context, *args.contexts]
    if min(contexts) <= args.positions:
        raise ValueError(
            f"--positions: a window of {min(contexts)} tokens has no prefix before "
            f"{args.positions} positions"
        )
    chosen = args.selectors
    plan = [(args.context, budget, variant) for budget in args.budgets for variant in chosen]
    plan += [(context, args.at, variant) for context in args.contexts for variant in chosen]
    if args.ablations:
        plan += [(args.context, args.at, variant) for variant in ablations()]
    texts = named_texts(args.text)
    writable(args.out)
    path = fitting(args.model, contexts)
    record = Record(args.out / "cells.jsonl", settings(path, args.positions), comparing.KEY)
    model, tokenizer = loaded(path, args.tokenizer)
    fits(path.name, model.config.context, contexts)
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
    writable(args.out)
    path = fitting(args.model, args.contexts)
    record = Record(args.out / "tasks.jsonl", settings(path, args.positions), answers.KEY)
    model, tokenizer = loaded(path, args.tokenizer)
    fits(path.name, model.config.context, args.contexts)
    prompts = suite(args.contexts, args.examples, answers.counter(tokenizer))
    runs = [(answers.FULL, None), *((v, budget) for v in args.selectors for budget in args.budgets)]
    with steps() as move:
        answers.judge(model, tokenizer, prompts, runs, record, move)

    rows = answer_rows.pooled(record)
    solved = [row for row in rows if row["solved"]]
    write_json(args.out / "tasks.json", {**environment(path, command()), "rows": rows})
    tables.answers(rows)
    draw(lambda plots: plots.tasks(solved, args.out))


def named_texts(names: list[str]) -> list[Text]:
    """The texts, which must differ in their names, because results are kept by name."""
    for name in names:
        if name not in BUILT_IN and not Path(name).exists():
            raise ValueError(
                f"--text: {name}: No such file; expected one of {', '.join(BUILT_IN)}, or a file"
            )
    texts = [named(name) for name in names]
    own = [text.name for text in texts]
    twice = [name for name in own if own.count(name) > 1]
    if twice:
        raise ValueError(f"--text: two texts are called {twice[0]}; expected different names")
    return texts


def fitting(model: Path | FetchedModel, contexts: Iterable[int]) -> Path:
    """The path of a model. The contexts are checked before a download."""
    if isinstance(model, FetchedModel):
        fits(model.title, model.context, contexts)
    return fetched(model)


def fits(model: str, limit: int, contexts: Iterable[int]) -> None:
    """Reject a context that is longer than the model's."""
    longest = max(contexts, default=0)
    if longest > limit:
        raise ValueError(
            f"a context of {longest} is more than the {limit} of the model {model}; --context and "
            "--contexts take shorter ones"
        )


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
