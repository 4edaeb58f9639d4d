"""Compare ways to choose tokens: how far each moves a model from its full attention.

Results go to --out as they come, and a run that was interrupted goes on from there.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import sys
from collections.abc import Callable, Iterable, Mapping
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import __version__
from ..llama import fetch
from ..reference.selectors import SELECTORS, Selector
from . import results
from .ablations import Variant, ablations, variants
from .evaluate import Reading
from .progress import bar
from .record import Record
from .texts import BUILT_IN, Text, digest, named

if TYPE_CHECKING:
    from ..llama import Config

# What is compared where nothing is said, and under --quick.
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
KEY = ("text", "context", "selector", "budget")
HEAT = "relative_mass_by_layer_and_head"


def arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--model", type=Path, help="a GGUF file or a Hugging Face folder (SmolLM2-135M, fetched)")
    add("--tokenizer", type=Path, help="where it does not lie with the model")
    add(
        "--text",
        action="append",
        help=f"{', '.join(BUILT_IN)} or a UTF-8 file; may be given again (all three)",
    )
    add("--context", type=int, help="tokens of a window, where budgets are compared (8192)")
    add("--positions", type=int, help="last tokens of a window, which are decoded (512)")
    add("--budgets", type=int, nargs="+", help="tokens a query head attends to (16 to 1024)")
    add("--contexts", type=int, nargs="*", help="compared at the budget --at (1024 to 8192)")
    add("--at", type=int, default=128, help="budget of contexts and ablations (128)")
    add("--selectors", nargs="+", help=f"of {', '.join(SELECTORS)} (all but full)")
    add("--ablations", action="store_true", help="also changes of the method, at the budget --at")
    add("--tasks", action="store_true", help="tasks with exact answers, in place of texts")
    add("--out", type=Path, default=Path("adamas-compare"), help="folder of results")
    add("--examples", type=int, help="prompts of each task, length and depth (2)")
    add("--quick", action="store_true", help="a short context, few selectors: under two minutes")


def run(args: argparse.Namespace) -> int:
    for name, value in (QUICK if args.quick else DEFAULTS).items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    if args.tasks:
        from . import judge

        return judge.run(args)
    plan = [(args.context, b, v) for b in args.budgets for v in variants(args.selectors)]
    plan += [(c, args.at, v) for c in args.contexts for v in variants(args.selectors)]
    if args.ablations:
        plan += [(args.context, args.at, v) for v in ablations()]
    texts = [named(name) for name in args.text]

    path = args.model or fetch.smollm2()
    record = Record(args.out / "cells.jsonl", settings(path, args.positions), KEY)
    compare(path, args.tokenizer or path, texts, plan, args.positions, record)
    report(args, path, record)
    return 0


def settings(path: Path, positions: int) -> dict[str, Any]:
    """What every result of a folder depends on."""
    files = [path] if path.is_file() else sorted(f for f in path.iterdir() if f.is_file())
    return {
        "adamas_core": __version__,
        "model": path.name,
        "model_bytes": sum(f.stat().st_size for f in files),
        "positions": positions,
    }


def compare(
    path: Path,
    tokenizer_path: Path,
    texts: list[Text],
    plan: list[tuple[int, int, Variant]],
    positions: int,
    record: Record,
) -> None:
    """Measure what the record lacks of a plan of (context, budget, variant), on each text."""
    from .. import llama

    with bar("Loading the model"):
        model, tokenizer = llama.load(path), llama.load_tokenizer(tokenizer_path)
    contexts = list(dict.fromkeys(context for context, _, _ in plan))
    if max(contexts) > model.config.context:
        raise ValueError(
            f"a context of {max(contexts)} is more than the model's {model.config.context}"
        )
    for text in texts:
        windows = text.windows(tokenizer, contexts)
        for context, window in windows.items():
            todo = {}
            for at, budget, variant in plan:
                facts = about(variant, text.name, window, budget, model.config)
                if at == context and not record.has(facts):
                    todo[budget, variant.key] = (variant, facts)
            if not todo:
                continue
            with bar(f"Reading {context} tokens of {text.name}") as move:
                reading = Reading(model, window, positions, move)
            full = reading.full()
            fitted: dict[str, list[Selector]] = {}
            for done, ((budget, key), (variant, facts)) in enumerate(todo.items()):
                told = f"{text.name}, context {context}, budget {budget}, {variant.name}"
                with bar(f"{done + 1} of {len(todo)}: {told}") as move:
                    move(done, len(todo))
                    if key not in fitted:
                        fitted[key] = reading.prefix.fit(variant.selector)
                    sparse = reading.next_token(fitted[key], budget, variant.dense_layers)
                    captured = reading.captured(fitted[key], budget)
                    record.add(results.cell(full, sparse, captured, variant, facts))


def about(
    variant: Variant, text: str, window: list[int], budget: int, config: Config
) -> dict[str, Any]:
    """What is known of a cell before it is measured; its bytes are those of a KV head."""
    D, S = config.head_dim, len(window) - 1
    row = 2 * 2 * D  # a token's key and value in float16
    taken = min(budget, S) * config.heads // config.kv_heads  # rows, once a query head
    to_choose = variant.selector.bytes_read(D, S, budget)
    return {
        "text": text,
        "context": S,
        "selector": variant.key,
        "budget": budget,
        "name": variant.name,
        "options": repr(variant.selector),
        "dense_layers": variant.dense_layers,
        "window": digest(window),
        "bytes_kept": variant.selector.bytes_kept(D),
        "bytes_to_choose": to_choose,
        "bytes_a_step": to_choose + taken * row,
        "bytes_a_step_full": S * row,
    }


def report(args: argparse.Namespace, path: Path, record: Record) -> None:
    """The table on the terminal, results.json and plots in --out, of all that the record holds."""
    rows = results.pooled(record)
    written = {
        **environment(path),
        "positions": args.positions,
        "rows": [{k: v for k, v in row.items() if k != HEAT} for row in rows],  # cells have it
        "cells": list(record),
    }
    write_json(args.out / "results.json", written)
    show(rows, args.at, list(record))
    draw(lambda figures: figures.quality(list(record), args.out, args.context, args.at))
    print(f"written to {args.out}")


def environment(path: Path) -> dict[str, Any]:
    """Where and how a result came to be."""
    return {
        "command": " ".join(["adamas-core", *sys.argv[1:]]),
        "date": date.today().isoformat(),
        "adamas_core": __version__,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "machine": f"{platform.machine()}, {os.cpu_count()} CPUs, {platform.system()}",
        "model": path.name,
    }


def write_json(path: Path, written: Mapping[str, Any]) -> None:
    """JSON of a line a row: lists of rows are long, and their rows short."""
    parts = []
    for name, value in written.items():
        if isinstance(value, list):
            inner = ",\n".join(f"  {json.dumps(item)}" for item in value)
            parts.append(f" {json.dumps(name)}: [\n{inner}\n ]")
        else:
            parts.append(f" {json.dumps(name)}: {json.dumps(value)}")
    path.write_text("{\n" + ",\n".join(parts) + "\n}\n", encoding="utf-8")


def show(rows: list[dict[str, Any]], at: int, cells: list[dict[str, Any]]) -> None:
    """One table a context: every selector at the budget `at`, or at the nearest there is."""
    from rich.console import Console
    from rich.table import Table

    for context in sorted({row["context"] for row in rows}):
        here = [row for row in rows if row["context"] == context]
        budget = min({row["budget"] for row in here}, key=lambda b: abs(b - at))
        perplexity = {c["text"]: c["perplexity_full"] for c in cells if c["context"] == context}
        told = ", ".join(f"{text} {value:.2f}" for text, value in perplexity.items())
        table = Table(
            title=f"Context {context}, budget {budget}; perplexity of full attention: {told}",
            caption="means over texts, ± half of the 95% interval over positions; "
            "bytes are a KV head's; mass is relative to the oracle's",
        )
        table.add_column("selector")
        for column in (
            "texts",
            "KL",
            "perplexity",
            "top-1",
            "mass",
            "worst tenth",
            "recall",
            "output error",
            "bytes kept a token",
            "bytes a step",
            "CPU ms to choose",
        ):
            table.add_column(column, justify="right")
        for row in here:
            if row["budget"] == budget:
                table.add_row(*columns(row))
        Console(width=None if sys.stdout.isatty() else 200).print(table)


def columns(row: Mapping[str, Any]) -> Iterable[str]:
    """A row as the table prints it."""

    def mean(name: str, digits: int) -> str:
        value, half = row[name]
        return f"{value:.{digits}f} ± {half:.{digits}f}"

    return (
        row["name"],
        str(len(row["texts"])),
        mean("kl", 4),
        f"x {row['perplexity_ratio'][0]:.4f}",
        mean("agreement", 3),
        mean("relative_mass", 3),
        f"{row['relative_mass_worst_tenth']:.3f}",
        mean("recall", 3),
        mean("output_error", 3),
        f"{row['bytes_kept']:g}",
        f"{row['bytes_a_step']:,.0f}",
        f"{row['ms_to_choose']:.2f}",
    )


def draw(plot: Callable[[Any], None]) -> None:
    """Plots, or one sentence where there is no matplotlib."""
    if importlib.util.find_spec("matplotlib") is None:
        told = 'no plots: matplotlib is missing (pip install "adamas-core[compare]")'
        print(told, file=sys.stderr)
        return
    from . import figures

    plot(figures)
