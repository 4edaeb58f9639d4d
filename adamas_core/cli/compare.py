"""Compare ways to choose tokens: how far each moves a model from its full attention.

Each result on a text or a task is written to --out at once. An interrupted run continues from
there.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from ..checks import MAX_TOKENS
from ..lab import answer_rows, answers, comparing, offset_keys, results
from ..lab.metrics import BATCHES
from ..lab.records import Record, settings
from ..lab.reports import environment, write_json
from ..lab.selectors import SELECTORS, Form
from ..lab.tasks import suite
from ..lab.texts import BUILT_IN, Text, named
from ..lab.variants import Variant, ablations, variants
from ..llama import fetch
from ..llama.fetch import FetchedModel
from . import sizes, tables, terminal
from .loading import MODEL, fetched, loaded, model_name
from .parser import existing, no_effect, nonempty, whole, writable
from .progress import steps

# The selectors that are compared if none is named, without and with --quick.
USUAL = [name for name in SELECTORS if name != "full"]
QUICK = ["exact", "streaming-llm", "quest", "paper-quartiles", "adamas", "tail-256"]
EXAMPLES = 2  # prompts per task, length and depth; 1 with --quick
OFFSET_BUDGETS = (128,)
SEEDS = 4  # samples of keys per offset; 1 with --quick
# The options that each kind of run does not read.
NOT_OF_TEXTS = ("examples",)
NOT_OF_TASKS = ("text", "context", "positions", "at", "ablations")
NOT_OF_OFFSETS = ("model", "tokenizer", "contexts", "examples", *NOT_OF_TASKS)


def arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--model", type=model_name, help=f"{MODEL} ({fetch.DEFAULT})")
    add("--tokenizer", type=existing, help="the tokenizer, if it is not beside the model")
    add(
        "--text",
        action="append",
        help=f"{', '.join(BUILT_IN)} or a UTF-8 file; may be repeated (all three)",
    )
    add("--context", type=whole(1), help="tokens of the text in the comparison of budgets (8192)")
    add(
        "--positions",
        type=whole(BATCHES),
        help="last tokens of the text, which are decoded (512, or half of the shortest context)",
    )
    budgets = "tokens that a query head attends to (16 to 1024; 128 with --offsets)"
    add("--budgets", type=whole(1), nargs="+", help=budgets)
    contexts = "contexts to compare at one budget, --at (1024 to --context)"
    add("--contexts", type=whole(1), nargs="*", help=contexts)
    add("--at", type=whole(1), help="budget for --contexts and --ablations (128)")
    add("--selectors", nargs="+", help=f"of {', '.join(SELECTORS)} (all but full)")
    add(
        "--ablations",
        action="store_const",
        const=True,
        help="also compare changes of the method, at the budget --at",
    )
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument(
        "--tasks", action="store_true", help="tasks with exact answers, instead of texts"
    )
    kind.add_argument(
        "--offsets", action="store_true", help="synthetic keys with an offset; needs no model"
    )
    add("--out", type=nonempty, default=Path("adamas-compare"), help="folder for results")
    add("--examples", type=whole(1), help="with --tasks: prompts per task, length and depth (2)")
    add("--quick", action="store_true", help="a short context, few selectors: under two minutes")


def run(args: argparse.Namespace) -> int:
    require_one_kind(args)
    chosen = variants(list(dict.fromkeys(args.selectors or usual(args))))
    terminal.console()  # without rich the command ends here, and not after the download
    if args.offsets:
        run_offsets(args, chosen)
    elif args.tasks:
        run_tasks(args, chosen)
    else:
        run_texts(args, chosen)
    print(f"written to {args.out}")
    return 0


def usual(args: argparse.Namespace) -> list[str]:
    """What is compared if nothing is named. A form has no mass of chosen tokens, so no offsets."""
    names = QUICK if args.quick else USUAL
    return [n for n in names if not (args.offsets and isinstance(SELECTORS[n], Form))]


def require_one_kind(args: argparse.Namespace) -> None:
    """Reject options of another kind of run."""
    names: tuple[str, ...] = NOT_OF_TEXTS
    why = "without --tasks"
    if args.tasks:
        names, why = NOT_OF_TASKS, "with --tasks"
    elif args.offsets:
        names, why = NOT_OF_OFFSETS, "with --offsets"
    no_effect({f"--{name}": getattr(args, name) for name in names}, why)


def run_texts(args: argparse.Namespace, chosen: list[Variant]) -> None:
    """Compare on texts; show the table, and write results.json and plots from the whole record."""
    model = args.model or fetch.MODELS[fetch.DEFAULT]
    asked = sizes.of_texts(args, limit_of(model))
    texts = named_texts(args.text or list(BUILT_IN))
    fits(model, limit_of(model), [asked.context, *asked.contexts])
    writable(args.out)
    path = fetched(model)
    decoder, tokenizer = loaded(path, args.tokenizer)
    limit = decoder.config.context
    context, contexts, positions, budgets, at = sizes.of_texts(args, limit)
    fits(model, limit, [context, *contexts])
    plan = [(context, budget, variant) for budget in budgets for variant in chosen]
    plan += [(other, at, variant) for other in contexts for variant in chosen]
    if args.ablations:
        plan += [(context, at, variant) for variant in ablations(decoder.config.head_dim)]
    record = Record(args.out / "cells.jsonl", settings(path, positions), comparing.KEY)
    with steps() as move:
        comparing.compare(decoder, tokenizer, texts, plan, positions, record, move)

    cells = list(record)
    rows = results.pooled(cells)
    report = {
        **environment(path, command()),
        "positions": positions,
        "rows": [
            {k: v for k, v in row.items() if k not in results.HEATS} for row in rows
        ],  # cells have it
        "cells": cells,
    }
    write_json(args.out / "results.json", report)
    tables.quality(rows, at, cells)
    drawn("plots", lambda plots: plots.quality(cells, args.out, context, at))


def run_tasks(args: argparse.Namespace, chosen: list[Variant]) -> None:
    """Judge answers; show the table, and write tasks.json and the plot from the whole record.

    Budgets are --budgets and lengths are --contexts.
    """
    model = args.model or fetch.MODELS[fetch.DEFAULT]
    fits(model, limit_of(model), sizes.of_tasks(args, limit_of(model))[0])
    writable(args.out)
    path = fetched(model)
    record = Record(args.out / "tasks.jsonl", settings(path), answers.KEY)
    decoder, tokenizer = loaded(path, args.tokenizer)
    contexts, budgets = sizes.of_tasks(args, decoder.config.context)
    fits(model, decoder.config.context, contexts)
    examples = args.examples or (1 if args.quick else EXAMPLES)
    every = suite(contexts, examples, answers.counter(tokenizer))
    prompts = [prompt for prompt in every if prompt.length <= decoder.config.context]
    if not prompts:
        raise ValueError(
            f"--tasks: the context of the model, {decoder.config.context}, is shorter than any task"
        )
    runs = [(answers.FULL, None), *((v, budget) for v in chosen for budget in budgets)]
    with steps() as move:
        answers.judge(decoder, tokenizer, prompts, runs, record, move)

    rows = answer_rows.pooled(record)
    solved = [row for row in rows if row["solved"]]
    write_json(args.out / "tasks.json", {**environment(path, command()), "rows": rows})
    tables.answers(rows)
    drawn("plots", lambda plots: plots.tasks(solved, args.out))


def run_offsets(args: argparse.Namespace, chosen: list[Variant]) -> None:
    """Compare on synthetic keys; show a table per budget, and write offsets.json."""
    budgets = sizes.given(args.budgets, OFFSET_BUDGETS)
    for variant in chosen:
        offset_keys.selector_of(variant)  # refuses forms before a folder is made
    writable(args.out)
    with steps() as move:
        rows = offset_keys.measure(chosen, budgets, range(1 if args.quick else SEEDS), move)
    write_json(args.out / "offsets.json", {**environment(None, command()), "rows": rows})
    tables.offsets(rows)


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


def limit_of(model: Path | FetchedModel) -> int:
    """The context of a model that is fetched; that of a file is known when it is loaded."""
    return model.context if isinstance(model, FetchedModel) else MAX_TOKENS


def fits(model: Path | FetchedModel, limit: int, contexts: Iterable[int]) -> None:
    """Reject a context that is longer than the model's."""
    longest = max(contexts, default=0)
    if longest > limit:
        name = model.title if isinstance(model, FetchedModel) else model.name
        raise ValueError(
            f"a context of {longest} is more than the {limit} of the model {name}; --context and "
            "--contexts take shorter ones"
        )


def command() -> str:
    """The command line of this run."""
    return " ".join(["adamas-core", *sys.argv[1:]])


def drawn(module: str, plot: Callable[[Any], None]) -> None:
    """Call `plot` with a module of plots, or print one sentence if matplotlib is missing."""
    if importlib.util.find_spec("matplotlib") is None:
        missing = 'no plots: matplotlib is missing (pip install "adamas-core[compare]")'
        print(missing, file=sys.stderr)
        return
    plot(importlib.import_module(f"..lab.{module}", __package__))
