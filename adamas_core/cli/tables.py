"""The tables of ``adamas-core compare`` on the terminal."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ..lab.answer_rows import over_depths
from ..lab.answers import FULL
from .terminal import show

Row = Mapping[str, Any]

NONE = "-"  # a figure that a form of attention, or an older record, does not have
COLUMNS = (
    "texts",
    "KL",
    "perplexity",
    "top-1",
    "mass",
    "worst tenth",
    "recall",
    "output error",
    "error, worst tenth",
    "bytes kept per token",
    "bytes per step",
    "CPU ms to choose",
)


def quality(rows: Sequence[Row], at: int, cells: Sequence[Row]) -> None:
    """One table per context: every selector at the budget `at`, or at the nearest one measured."""
    from rich.table import Table

    for context in sorted({row["context"] for row in rows}):
        here = [row for row in rows if row["context"] == context]
        budget = min({row["budget"] for row in here}, key=lambda b: abs(b - at))
        full = {c["text"]: c["perplexity_full"] for c in cells if c["context"] == context}
        perplexity = ", ".join(f"{text} {value:.2f}" for text, value in full.items())
        table = Table(
            title=f"Context {context}, budget {budget}; perplexity of full attention: {perplexity}",
            caption="means over texts, ± half of the 95% interval over positions; "
            "bytes are per KV head; mass is relative to the oracle's",
        )
        table.add_column("selector")
        for column in COLUMNS:
            table.add_column(column, justify="right")
        for row in here:
            if row["budget"] == budget:
                table.add_row(*quality_cells(row))
        show(table)


def quality_cells(row: Row) -> Iterable[str]:
    """The texts of a row, one per column."""

    def mean(name: str, digits: int) -> str:
        if row[name] is None:
            return NONE
        value, half = row[name]
        return f"{value:.{digits}f} ± {half:.{digits}f}"

    def plain(name: str, digits: int) -> str:
        return NONE if row[name] is None else f"{row[name]:.{digits}f}"

    return (
        row["name"],
        str(len(row["texts"])),
        mean("kl", 4),
        f"x {row['perplexity_ratio'][0]:.4f}",
        mean("agreement", 3),
        mean("relative_mass", 3),
        plain("relative_mass_worst_tenth", 3),
        mean("recall", 3),
        mean("output_error", 3),
        plain("output_error_worst_tenth", 3),
        f"{row['bytes_kept']:g}",
        f"{row['bytes_a_step']:,.0f}",
        plain("ms_to_choose", 2),
    )


def offsets(rows: Sequence[Row]) -> None:
    """One table per budget: a row per selector, a column per kind of pairs and norm."""
    from rich.table import Table

    for budget in dict.fromkeys(row["budget"] for row in rows):
        here = [row for row in rows if row["budget"] == budget]
        columns = list(dict.fromkeys((row["pairs"], row["norm"]) for row in here))
        table = Table(
            title=f"Mass relative to the exact top-k's, budget {budget}",
            caption="keys with an offset of this norm, in slow or in all pairs of RoPE",
        )
        table.add_column("selector")
        for pairs, norm in columns:
            table.add_column(f"{pairs}, {norm}", justify="right")
        for name in dict.fromkeys(row["name"] for row in here):
            mass = {(row["pairs"], row["norm"]): row["mass"] for row in here if row["name"] == name}
            table.add_row(name, *(f"{mass[column]:.3f}" for column in columns))
        show(table)


def answers(rows: Sequence[Row]) -> None:
    """A row per selector and budget, a column per task; then tasks that full attention fails."""
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
    show(table)
    unsolved = [row for row in rows if not row["solved"] and row["selector"] == FULL.key]
    for own in over_depths(unsolved).values():
        for (task, length), share in own.items():
            show(f"left out: {task}, {length}; full attention gets {share:.2f} right")
