"""The tables of ``adamas-core mechanisms`` on the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..lab.latent_rows import REFINE
from .amounts import amount
from .tables import NONE
from .terminal import show

Row = Mapping[str, Any]

COLUMNS = (
    "O(): step, kept, prefill",
    "operations of a step",
    "bytes read in a step",
    "bytes kept",
    "operations of a prefill",
    "needles found",
    "output error",
    "models",
)


def show_all(report: Row) -> None:
    """All tables of a report; those on a model are there if it has them."""
    costs(report)
    if "errors" in report:
        fits(report["indexer"], f"Attention of the middle layer, {report['context']} tokens")
        fits(report["lolcats"], "Outputs of the middle layer, one head of each KV head")
        if report["latent"]:
            latent(report["latent"])


def costs(report: Row) -> None:
    """A row per mechanism; an exponent is followed by that of the theory."""
    from rich.table import Table

    sizes, S, L = report["sizes"], report["steps"][-1] + 1, report["prefills"][-1]
    table = Table(
        title=f"H = {sizes['H']}, H_kv = {sizes['H_kv']}, D = {sizes['D']}; steps at {S // 1024}K "
        f"tokens, prefills of {L // 1024}K",
        caption="in brackets: the measured exponent of S, and that of the theory; bytes are of "
        "float32, and of 16 bits for selectors, which count their own; all is untrained",
    )
    table.add_column("mechanism")
    for column in COLUMNS:
        table.add_column(column, justify="left" if column == "models" else "right")
    for row in report["rows"]:
        table.add_row(*cost_cells(row, report.get("errors", {})))
    show(table)


def cost_cells(row: Row, errors: Mapping[str, float]) -> Sequence[str]:
    """The texts of a row, one per column."""

    def cell(field: str, text: str) -> str:
        pair = row["exponents"][field]
        if pair is None:
            return NONE
        measured, theory = (round(x, 2) + 0.0 for x in pair)  # no -0.0
        return f"{text} ({measured:.2f}, {theory:.2f})"

    def last(field: str) -> float:
        return 0.0 if row[field] is None else float(row[field][-1])

    return (
        f"{row['name']} ({row['paper']})",
        row["order"],
        cell("operations", f"{last('operations'):.2g}"),
        cell("read", amount(last("read"))),
        cell("kept", amount(last("kept"))),
        cell("prefill", f"{last('prefill'):.2g}"),
        f"{row['found']:.2f}",
        f"{errors[row['mechanism']]:.3f}" if row["mechanism"] in errors else NONE,
        row["models"],
    )


def fits(rows: Sequence[Row], title: str) -> None:
    """What a fit on the first half of a text gives on its last queries, beside codes."""
    from rich.table import Table

    figures = [name for name in rows[0] if name != "name"]
    table = Table(title=f"{title}; held-out queries")
    table.add_column("")
    titles = {
        "kl": "KL from the attention",
        "mass": "mass at 128, relative",
        "shared": "heads share tokens",
        "error": "output error",
    }
    for figure in figures:
        table.add_column(titles[figure], justify="right")
    for row in rows:
        table.add_row(row["name"], *(figure_cell(row[figure]) for figure in figures))
    show(table)


def figure_cell(value: float | bool | None) -> str:
    if value is None:
        return NONE
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.3f}"


def latent(rows: Sequence[Row]) -> None:
    """Codes of latent rows: a row per layer."""
    from rich.table import Table

    table = Table(
        title=f"MLA's absorbed form, D_k = 576: tokens chosen by codes of latent rows, "
        f"{rows[0]['budget']} of {rows[0]['tokens']}",
        caption="the rows are the keys and values of the layer, turned; see docs/mechanisms.md",
    )
    table.add_column("layer")
    titles = {
        "mass": "mass, exact",
        "relative": "mass of codes, relative",
        "refined": f"with refine={REFINE}",
        "error_exact": "error, exact",
        "error_codes": "error, codes",
        "error_refined": f"error, refine={REFINE}",
    }
    for title in titles.values():
        table.add_column(title, justify="right")
    for row in rows:
        table.add_row(str(row["layer"]), *(figure_cell(row[name]) for name in titles))
    show(table)
