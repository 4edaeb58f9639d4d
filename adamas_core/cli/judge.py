"""Generated tasks under every selector: the share of answers that greedy decoding gets exactly.

A prompt is read densely, and its question too but for the last token. From there on all layers are
sparse. The right answer is put in as one causal block: greedy decoding gives it if and only if each
of its tokens is the likeliest behind those before.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..llama import Llama, fetch
from ..reference.selectors import Full, Selector
from . import compare
from .ablations import Variant, variants
from .prefix import Prefix
from .progress import bar
from .record import Record
from .tasks import Prompt, suite

if TYPE_CHECKING:
    from ..llama import Tokenizer

KEY = ("task", "length", "depth", "example", "selector", "budget")
SOLVED = 0.8  # a task counts where full attention gets as many right
FULL = Variant("full", Full())


def run(args: argparse.Namespace) -> int:
    """The command under --tasks; budgets are --budgets, lengths --contexts."""
    from .. import llama

    path = args.model or fetch.smollm2()
    with bar("Loading the model"):
        model = llama.load(path)
        tokenizer = llama.load_tokenizer(args.tokenizer or path)
    settings = compare.settings(path, args.positions)
    record = Record(args.out / "tasks.jsonl", settings, KEY)
    prompts = suite(args.contexts, args.examples, tokenizer_count(tokenizer))
    runs = [(FULL, None), *((v, b) for v in variants(args.selectors) for b in args.budgets)]
    judge(model, tokenizer, prompts, runs, record)
    report(args.out, path, record)
    return 0


def tokenizer_count(tokenizer: Tokenizer) -> Callable[[str], int]:
    """How many tokens a text has."""
    return lambda text: len(encoded(tokenizer, text))


def encoded(tokenizer: Tokenizer, text: str) -> list[int]:
    return tokenizer.encode(text, bos=False, special=False)


def judge(
    model: Llama,
    tokenizer: Tokenizer,
    prompts: list[Prompt],
    runs: list[tuple[Variant, int | None]],
    record: Record,
) -> None:
    """Put every question of every prompt, where the record lacks the result."""
    examples: dict[tuple[Any, ...], int] = {}
    for done, prompt in enumerate(prompts):
        kind = (prompt.task, prompt.length, prompt.depth)
        example = examples[kind] = examples.get(kind, -1) + 1
        todo = []
        for variant, budget in runs:
            facts = {
                "task": prompt.task,
                "length": prompt.length,
                "depth": prompt.depth,
                "example": example,
                "selector": variant.key,
                "budget": budget,
                "name": variant.name,
                "options": repr(variant.selector),
            }
            if not record.has(facts):
                todo.append((variant, budget, facts))
        if not todo:
            continue
        told = f"{done + 1} of {len(prompts)}: {prompt.task}, {prompt.length} tokens"
        text = encoded(tokenizer, prompt.text)
        asked = [encoded(tokenizer, q.text) for q in prompt.questions]
        answers = [encoded(tokenizer, q.answer) for q in prompt.questions]
        room = max(len(q) + len(a) for q, a in zip(asked, answers, strict=True))
        with bar(told) as move:
            prefix = Prefix(model, text, room, move)
        fitted: dict[str, list[Selector]] = {}
        with bar(told) as move:
            for i, (variant, budget, facts) in enumerate(todo):
                move(i, len(todo))
                if variant.key not in fitted and budget is not None:
                    fitted[variant.key] = prefix.fit(variant.selector)
                right = [
                    exact(prefix, question, answer, fitted.get(variant.key), budget)
                    for question, answer in zip(asked, answers, strict=True)
                ]
                record.add({**facts, "tokens": len(text), "asked": len(right), "right": sum(right)})


def exact(
    prefix: Prefix,
    question: list[int],
    answer: list[int],
    fitted: list[Selector] | None,
    budget: int | None,
) -> bool:
    """Whether greedy decoding behind the question gives the answer; densely without a budget."""
    model, position = prefix.model, prefix.length
    dense = prefix.cache.attention(None)
    prefix.cache.truncate(position)
    if len(question) > 1:
        model.forward(question[:-1], position, dense)
        position += len(question) - 1
    attention = dense if fitted is None or budget is None else prefix.sparse(fitted, budget)
    block = [question[-1], *answer[:-1]]
    logits = model.forward(block, position, attention, last=False)  # (len(answer), V)
    return bool(np.array_equal(logits.argmax(axis=-1), answer))


def report(out: Path, path: Path, record: Record) -> None:
    """The table on the terminal, tasks.json and the plot in `out`."""
    rows = pooled(record)
    solved = [row for row in rows if row["solved"]]
    compare.write_json(out / "tasks.json", {**compare.environment(path), "rows": rows})
    show(rows)
    compare.draw(lambda figures: figures.tasks(solved, out))
    print(f"written to {out}")


def pooled(cells: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Rows over examples; `solved` tells whether full attention solves the task at that length."""
    groups: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    full: dict[tuple[Any, ...], list[int]] = {}
    for c in cells:
        kind = (c["task"], c["length"], c["depth"], c["selector"], c["budget"])
        groups.setdefault(kind, []).append(c)
        if c["selector"] == FULL.key:
            score = full.setdefault((c["task"], c["length"]), [0, 0])
            score[0] += c["right"]
            score[1] += c["asked"]
    rows = []
    for (task, length, depth, selector, budget), group in groups.items():
        asked, right = (sum(c[name] for c in group) for name in ("asked", "right"))
        by_full = full.get((task, length), [0, 1])
        rows.append(
            {
                "task": task,
                "length": length,
                "depth": depth,
                "selector": selector,
                "name": group[0]["name"],
                "budget": budget,
                "asked": asked,
                "right": right,
                "exact": right / asked,
                "solved": by_full[0] / by_full[1] >= SOLVED,
            }
        )
    return rows


def over_depths(rows: Iterable[Mapping[str, Any]]) -> dict[tuple[Any, ...], dict[Any, float]]:
    """The share of right answers by (selector's name, budget), and there by (task, length)."""
    counts: dict[tuple[Any, ...], dict[Any, list[int]]] = {}
    for row in rows:
        own = counts.setdefault((row["name"], row["budget"]), {})
        score = own.setdefault((row["task"], row["length"]), [0, 0])
        score[0] += row["right"]
        score[1] += row["asked"]
    return {
        run: {kind: right / asked for kind, (right, asked) in own.items()}
        for run, own in counts.items()
    }


def show(rows: list[dict[str, Any]]) -> None:
    """A row a selector and budget, a column a task; then what full attention does not solve."""
    from rich.console import Console
    from rich.table import Table

    solved = over_depths(row for row in rows if row["solved"])
    kinds = list(dict.fromkeys((row["task"], row["length"]) for row in rows if row["solved"]))
    table = Table(title="Share of answers that are exactly right")
    table.add_column("selector")
    table.add_column("budget", justify="right")
    for task, length in kinds:
        table.add_column(f"{task}, {length}", justify="right")
    for (name, budget), own in solved.items():
        shares = (f"{own[kind]:.2f}" if kind in own else "" for kind in kinds)
        table.add_row(name, "" if budget is None else str(budget), *shares)
    console = Console(width=None if sys.stdout.isatty() else 200)
    console.print(table)
    unsolved = [row for row in rows if not row["solved"] and row["selector"] == FULL.key]
    for own in over_depths(unsolved).values():
        for (task, length), share in own.items():
            console.print(f"left out: {task}, {length}; full attention gets {share:.2f} right")
