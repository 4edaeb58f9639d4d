"""Write the tables of docs/quality.md from the records of ``adamas-core compare``.

    python benchmarks/quality_tables.py

Each table stands between a comment that names it and a comment that ends it. Everything else on the
page stays as it is.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from adamas_core.lab import results  # noqa: E402
from adamas_core.lab.answer_rows import over_depths  # noqa: E402
from adamas_core.lab.selectors import SELECTORS  # noqa: E402

PAGE = ROOT / "docs" / "quality.md"
FOLDER = ROOT / "benchmarks" / "results" / "quality"
BUDGET = 128
TAILS = ("tail-64", "tail-256", "tail-1024", "tail-4096")
SWEPT = (
    "exact",
    "streaming-llm",
    "paper",
    "paper-quartiles",
    "adamas-plain",
    "adamas",
    "tail-256",
    "tail-1024",
)
LONGER = ("exact", "streaming-llm", "quest", *SWEPT[2:])
# Rows at about the bytes of 128 rows of K and V per query head; the last one has four times these.
EQUAL = (
    ("exact", 128),
    ("sparq-mean", 128),
    ("vattention", 128),
    ("adamas", 128),
    ("tail-1024", 16),
    ("tail-1024", 32),
    ("tail-256", 64),
    ("exact", 512),
)
NONE = "-"  # a figure that a form of attention, or an older record, does not have
# Rows of the table of ablations that are no ablations.
BESIDE = (
    "exact",
    "paper",
    "paper-quartiles",
    "paper-own-quartiles",
    "adamas-plain",
    "adamas",
    "adamas-plain-group",
    "adamas-group",
    "adamas-refine-2",
    "tail-1024",
)

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Model:
    """A record: its folder, the context of the main tables, and the rows that say nothing."""

    folder: Path
    context: int
    left_out: tuple[str, ...] = ()
    kinds: tuple[str, ...] | None = None  # the tables of texts on the page; None: all


MODELS = {
    "SmolLM2": Model(FOLDER, 8192),
    # Its first two layers have a window, and are dense in every run.
    "Gemma 3": Model(FOLDER / "gemma3", 32768, ("dense-2", "adamas-q5", "adamas-q6")),
    # Ablations and tasks from before windows and prompts began with BOS.
    "Gemma 3 without BOS": Model(
        FOLDER / "gemma3" / "without_bos",
        32768,
        ("dense-2", "adamas-q5", "adamas-q6"),
        ("ablations",),
    ),
}


def tables() -> dict[str, str]:
    """All tables by the names that their comments have."""
    found = {}
    for name, model in MODELS.items():
        report = json.loads((model.folder / "results.json").read_text())
        for kind, lines in of_texts(report["cells"], model):
            if model.kinds is None or kind in model.kinds:
                found[f"{name}, {kind}"] = "\n".join(lines)
        tasks = model.folder / "tasks.json"
        if tasks.exists():
            rows = json.loads(tasks.read_text())["rows"]
            found[f"{name}, tasks"] = "\n".join(of_tasks(rows))
    rows = json.loads((FOLDER / "offsets.json").read_text())["rows"]
    found["offsets"] = "\n".join(of_offsets(rows))
    return found


def of_texts(cells: Sequence[Row], model: Model) -> Iterator[tuple[str, Iterable[str]]]:
    """The tables of one model."""
    rows = results.pooled(c for c in cells if c["selector"] in SELECTORS)
    texts = max((row["texts"] for row in rows), key=len)
    whole = [row for row in rows if len(row["texts"]) == len(texts)]
    here = [row for row in whole if row["context"] == model.context]
    yield "selectors", every([row for row in here if row["budget"] == BUDGET])
    yield "tail", by_tail(here)
    yield "equal bytes", equal_bytes(here)
    for kind, text in BY_BUDGET.items():
        yield f"{kind} by budget", swept(here, SWEPT, "budget", text)
    at = [row for row in whole if row["budget"] == BUDGET]
    if len({row["context"] for row in at}) > 1:
        yield "contexts", swept(at, LONGER, "context", kl_and_mass)
    changed = [
        c
        for c in cells
        if (c["text"], c["context"], c["budget"]) == ("pydoc", model.context, BUDGET)
        and (c["selector"] in BESIDE or c["selector"] not in SELECTORS)
        and not c["selector"].endswith(model.left_out)
    ]
    if any(c["selector"] not in SELECTORS for c in changed):
        yield "ablations", ablations(results.pooled(changed))


def every(rows: Sequence[Row]) -> Iterator[str]:
    """A row per selector, with all figures."""
    yield from head(
        "selector",
        "KL",
        "perplexity",
        "top-1",
        "mass",
        "worst tenth",
        "recall",
        "output error",
        "error, worst tenth",
        "bytes kept",
        "bytes read",
        "CPU ms",
    )
    for row in rows:
        yield line(
            row["name"],
            with_half(row["kl"], 3),
            perplexity(row),
            with_half(row["agreement"], 3),
            figure(row["relative_mass"], 3),
            figure(row["relative_mass_worst_tenth"], 3),
            figure(row["recall"], 2),
            figure(row["output_error"], 3),
            figure(row["output_error_worst_tenth"], 3),
            f"{row['bytes_kept']:g}",
            f"{row['bytes_a_step'] / row['bytes_a_step_full']:.1%}",
            figure(row["ms_to_choose"], 2),
        )


def ablations(rows: Sequence[Row]) -> Iterator[str]:
    """A row per form of the method."""
    yield from head("form", "KL", "perplexity", "top-1", "mass", "worst tenth", "bytes kept")
    for row in rows:
        yield line(
            row["name"],
            with_half(row["kl"], 3),
            perplexity(row),
            f"{row['agreement'][0]:.3f}",
            figure(row["relative_mass"], 3),
            figure(row["relative_mass_worst_tenth"], 3),
            f"{row['bytes_kept']:g}",
        )


def swept(
    rows: Iterable[Row], keys: Sequence[str], field: str, text: Callable[[Row], str]
) -> Iterator[str]:
    """A row per selector, a column per value of a field.

    Selectors that were not measured are left out, and so are forms without the figure.
    """
    by_key: dict[str, dict[int, Row]] = {key: {} for key in keys}
    for row in rows:
        if row["selector"] in by_key:
            by_key[row["selector"]][row[field]] = row
    columns = sorted({value for own in by_key.values() for value in own})
    yield from head("selector", *map(str, columns))
    for own in by_key.values():
        texts = [text(own[value]) if value in own else "" for value in columns]
        if any(map(str.isdigit, "".join(texts))):
            yield line(next(iter(own.values()))["name"], *texts)


def by_tail(rows: Sequence[Row]) -> Iterator[str]:
    """A row per budget, a column per tail: KL, and perplexity relative to full attention."""
    columns = {"adamas": "no tail", **{key: SELECTORS[key].name for key in TAILS}}
    found = {(row["selector"], row["budget"]): row for row in rows if row["selector"] in columns}
    yield from head("budget", *columns.values())
    for budget in sorted({budget for _, budget in found}):
        own = [found.get((key, budget)) for key in columns]
        yield line(str(budget), *("" if row is None else kl_and_perplexity(row) for row in own))


def equal_bytes(rows: Sequence[Row]) -> Iterator[str]:
    """A row per form of about equal bytes of rows per query head, and what each costs in all."""
    yield from head(
        "form",
        "budget",
        "bytes of rows",
        "bytes read",
        "bytes kept",
        "KL",
        "perplexity",
        "top-1",
        "output error",
        "error, worst tenth",
    )
    found = {(row["selector"], row["budget"]): row for row in rows}
    for row in (found[key] for key in EQUAL if key in found):
        of_rows = row["bytes_of_rows"] or row["budget"] * row["bytes_a_step_full"] / row["context"]
        yield line(
            row["name"],
            str(row["budget"]),
            f"{of_rows:.0f}",
            f"{row['bytes_a_step'] / row['bytes_a_step_full']:.1%}",
            f"{row['bytes_kept']:g}",
            with_half(row["kl"], 4),
            perplexity(row),
            figure(row["agreement"], 3),
            figure(row["output_error"], 3),
            figure(row["output_error_worst_tenth"], 3),
        )


def of_tasks(rows: Iterable[Row]) -> Iterator[str]:
    """A row per selector and budget, a column per task that full attention solves."""
    solved = [row for row in rows if row["solved"]]
    kinds = list(dict.fromkeys((row["task"], row["length"]) for row in solved))
    yield from head("selector", "budget", *(f"{task}, {length} tokens" for task, length in kinds))
    for (name, budget), own in over_depths(solved).items():
        shares = (f"{own[kind]:.2f}" if kind in own else "" for kind in kinds)
        yield line(name, "" if budget is None else str(budget), *shares)
    asked = dict.fromkeys(kinds, 0)
    for row in solved:
        if row["budget"] is None:
            asked[row["task"], row["length"]] += row["asked"]
    yield line("questions", "", *map(str, asked.values()))


def of_offsets(rows: Sequence[Row]) -> Iterator[str]:
    """A row per selector, a column per kind of pairs and norm."""
    columns = list(dict.fromkeys((row["pairs"], row["norm"]) for row in rows))
    yield from head("selector", *(f"{pairs}, {norm}" for pairs, norm in columns))
    for name in dict.fromkeys(row["name"] for row in rows):
        mass = {(row["pairs"], row["norm"]): row["mass"] for row in rows if row["name"] == name}
        yield line(name, *(f"{mass[column]:.3f}" for column in columns))


def figure(value: Sequence[float] | float | None, digits: int) -> str:
    """A figure without its interval."""
    if value is None:
        return NONE
    return f"{value[0] if isinstance(value, Sequence) else value:.{digits}f}"


def with_half(mean: Sequence[float], digits: int) -> str:
    value, half = mean
    return f"{value:.{digits}f} ± {half:.{digits}f}"


def perplexity(row: Row) -> str:
    value, half = row["perplexity_ratio"]
    return f"{100 * (value - 1):+.1f}% ± {100 * half:.1f}"


def kl_and_mass(row: Row) -> str:
    return f"{row['kl'][0]:.3f}, {figure(row['relative_mass'], 3)}"


def kl_and_perplexity(row: Row) -> str:
    return f"{row['kl'][0]:.4f}, {100 * (row['perplexity_ratio'][0] - 1):+.1f}%"


def both_masses(row: Row) -> str:
    return f"{figure(row['relative_mass'], 3)}, {figure(row['relative_mass_worst_tenth'], 3)}"


BY_BUDGET: dict[str, Callable[[Row], str]] = {
    "KL": lambda row: with_half(row["kl"], 4),
    "perplexity": perplexity,
    "mass": both_masses,
    "top-1": lambda row: f"{row['agreement'][0]:.3f}",
}


def head(*columns: str) -> Iterator[str]:
    """The first two lines of a table."""
    yield line(*columns)
    yield line(*("---" for _ in columns))


def line(*columns: str) -> str:
    return f"| {' | '.join(columns)} |"


def filled(page: str, found: Mapping[str, str]) -> str:
    """The page with each table between its comments replaced."""

    def table(match: re.Match[str]) -> str:
        if match[1] not in found:
            raise ValueError(
                f"filled: no table is called {match[1]!r}; expected one of {(*found,)}"
            )
        return f"<!-- table: {match[1]} -->\n\n{found[match[1]]}\n\n<!-- end of table -->"

    pattern = r"<!-- table: (.*?) -->\n.*?<!-- end of table -->"
    return re.sub(pattern, table, page, flags=re.DOTALL)


def main() -> None:
    PAGE.write_text(filled(PAGE.read_text(encoding="utf-8"), tables()), encoding="utf-8")


if __name__ == "__main__":
    main()
