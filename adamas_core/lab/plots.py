"""The plots of `adamas-core compare`, as PNG files."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ..file_errors import naming
from .plot_lines import COLORS, chosen, looks, name_ends
from .results import on_common_texts, pooled
from .selectors import SELECTORS

Row = Mapping[str, Any]
DPI = 90
BASE = ("exact", "paper", "paper-quartiles", "adamas", "tail-1024")  # shown beside ablations
# The lines of each plot, if they were measured. The tables have all others.
OF_FRONT = (
    "exact",
    "sparq-mean",
    "vattention",
    "adamas",
    "tail-64",
    "tail-256",
    "tail-1024",
    "tail-4096",
)
OF_SWEEPS = (
    "exact",
    "streaming-llm",
    "quest",
    "paper",
    "paper-quartiles",
    "adamas-plain",
    "adamas",
    "tail-1024",
)
OF_LAYERS = (
    "exact",
    "streaming-llm",
    "sparq",
    "quest",
    "paper",
    "paper-quartiles",
    "adamas-plain",
    "adamas",
)
MASS_HEAT = "relative_mass_by_layer_and_head"


def quality(cells: Sequence[Row], out: Path, context: int, at: int) -> None:
    """All plots of finished cells: by budget at `context`, the rest at the budget `at`.

    All curves of a plot are averages over the same texts: those that all of them were measured on.
    """
    known = [c for c in cells if c["selector"] in SELECTORS]
    by_budget = [c for c in known if c["context"] == context]
    at_budget = [c for c in known if c["budget"] == at]
    here = [c for c in by_budget if c["budget"] == at]
    heads = only([c for c in here if c.get(MASS_HEAT) is not None], OF_LAYERS)
    plots: dict[str, tuple[Callable[[Sequence[Row]], Figure], list[Row]]] = {
        "front": (lambda rows: front(rows, at), only(by_budget, OF_FRONT)),
        "budgets": (budgets, only(swept(by_budget, "budget"), OF_SWEEPS)),
        "contexts": (contexts, only(swept(at_budget, "context"), OF_SWEEPS)),
        "heat": (heat, heads),
        "layers": (layers, heads),
        "selectors": (ranking, here),
    }
    changed = [c for c in cells if (c["context"], c["budget"]) == (context, at)]
    if any(c["selector"] not in SELECTORS for c in changed):
        compared = [c for c in changed if c["selector"] not in SELECTORS or c["selector"] in BASE]
        plots["ablations"] = (ranking, compared)
    for name, (plot, shown) in plots.items():
        if shown:
            save(plot(pooled(on_common_texts(shown))), out / f"{name}.png")


def only(cells: Sequence[Row], first: Sequence[str]) -> list[Row]:
    """The cells of at most eight selectors, those in `first` before others."""
    keys = [row["selector"] for row in pooled(cells)] if cells else []
    shown = chosen(keys, first)
    return [c for c in cells if c["selector"] in shown]


def swept(cells: Sequence[Row], field: str) -> list[Row]:
    """The cells of selectors that were measured at several values of a field."""
    values: dict[str, set[Any]] = {}
    for c in cells:
        values.setdefault(c["selector"], set()).add(c[field])
    return [c for c in cells if len(values[c["selector"]]) > 1]


def texts(rows: Sequence[Row]) -> str:
    """The texts of rows, which must be equal for all rows."""
    return "on " + ", ".join(rows[0]["texts"]).replace("$", r"\$")  # matplotlib reads $ as math


def about(rows: Sequence[Row]) -> str:
    """The context and texts of rows, which must be equal for all rows."""
    return f"context {rows[0]['context']}, {texts(rows)}"


def by_selector(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Rows of each selector, in the order of their first rows."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row["selector"], []).append(row)
    return groups


def curves(ax: Axes, rows: Sequence[Row], x: str, y: str, title: str) -> None:
    """One line per selector: `y` over `x`, with its interval if there is one."""
    groups = by_selector(rows)
    styles = looks(list(groups))  # a selector has the same look in all panels
    for key, every in groups.items():
        own = sorted((row for row in every if row[y] is not None), key=lambda row: float(row[x]))
        if not own:
            continue
        at = [row[x] for row in own]
        ax.plot(at, [value(row, y) for row in own], label=own[0]["name"], **styles[key])
        if isinstance(own[0][y], list):
            low = [value(row, y) - row[y][1] for row in own]
            high = [value(row, y) + row[y][1] for row in own]
            ax.fill_between(at, low, high, color=styles[key]["color"], alpha=0.08, linewidth=0)
    ax.set_xscale("log", base=2)
    ax.set_xticks(sorted({row[x] for row in rows}))
    ax.set_xticklabels([str(n) for n in sorted({row[x] for row in rows})])
    ax.minorticks_off()
    ax.set_title(title, fontsize=9)
    ax.tick_params(labelsize=8)
    ax.grid(alpha=0.3)


def value(row: Row, name: str) -> float:
    """A row's figure, without its interval."""
    return float(row[name][0] if isinstance(row[name], list) else row[name])


PANELS = {
    "kl": "KL of the next token, nats",
    "perplexity_ratio": "perplexity relative to full attention",
    "agreement": "top-1 agreement with full attention",
    "output_error": "relative L2 error of the attention output",
    "output_error_worst_tenth": "relative L2 error, mean of the worst tenth",
    "relative_mass": "attention mass relative to the oracle's",
}
LOGARITHMIC = ("kl", "perplexity_ratio")


def panels(rows: Sequence[Row], x: str, label: str, title: str) -> Figure:
    """One panel per figure of PANELS that some row has."""
    names = [name for name in PANELS if any(row[name] is not None for row in rows)]
    figure = Figure(figsize=(19, 9), layout="constrained")
    axes = figure.subplots(2, 3).ravel()
    for ax in axes[len(names) :]:
        ax.set_visible(False)
    for ax, name in zip(axes, names, strict=False):
        if name in LOGARITHMIC:
            ax.set_yscale("log")
        curves(ax, rows, x, name, PANELS[name])
        ax.set_xlabel(label, fontsize=8)
        name_ends(ax)
    figure.suptitle(title, fontsize=10)
    return figure


def budgets(rows: Sequence[Row]) -> Figure:
    return panels(rows, "budget", "budget, tokens per query head", f"by budget, {about(rows)}")


def contexts(rows: Sequence[Row]) -> Figure:
    return panels(
        rows, "context", "context, tokens", f"by context, budget {rows[0]['budget']}, {texts(rows)}"
    )


def front(rows: Sequence[Row], at: int) -> Figure:
    """KL against bytes read per step, and against bytes kept; down and to the left is better."""
    figure = Figure(figsize=(16, 7), layout="constrained")
    read, kept = figure.subplots(1, 2, width_ratios=(3, 2), sharey=True)
    groups = by_selector(rows)
    styles = looks(list(groups))
    for key, every in groups.items():
        own = sorted(every, key=lambda row: float(row["budget"]))
        share = [row["bytes_a_step"] / row["bytes_a_step_full"] for row in own]
        kl = [value(row, "kl") for row in own]
        read.plot(share, kl, label=own[0]["name"], **styles[key])
    for axis in (read.set_xscale, read.set_yscale):
        axis("log")
    read.set_xlabel("bytes read per step, as a share of full attention's")
    read.set_ylabel("KL of the next token, nats")
    listed = ", ".join(str(b) for b in sorted({row["budget"] for row in rows}))
    read.set_title(f"points of a line: budgets of {listed}", fontsize=9)
    name_ends(read, 9)
    for row in rows:
        if row["budget"] == at:
            look = {**styles[row["selector"]], "markersize": 9}
            kept.plot(row["bytes_kept"], value(row, "kl"), label=row["name"], **look)
    kept.set_xlabel("bytes kept per token and KV head, beside K and V")
    kept.set_title(f"budget {at}", fontsize=9)
    name_ends(kept, 9)
    for ax in (read, kept):
        ax.grid(alpha=0.3, which="both")
    figure.suptitle(about(rows), fontsize=10)
    return figure


def grid(count: int, width: float, height: float) -> tuple[Figure, Any]:
    """`count` panels of width x height inches, up to six per line."""
    lines = -(-count // 6)
    columns = -(-count // lines)
    figure = Figure(figsize=(width * columns, height * lines + 0.5), layout="constrained")
    axes = figure.subplots(lines, columns, squeeze=False).ravel()
    for ax in axes[count:]:
        ax.set_visible(False)
    return figure, axes


def heat(rows: Sequence[Row]) -> Figure:
    """Relative mass of each layer and head, one panel per selector."""
    groups = [own[0] for own in by_selector(rows).values()]
    figure, axes = grid(len(groups), 2.3, 3.6)
    for ax, row in zip(axes, groups, strict=False):
        image = ax.imshow(np.array(row[MASS_HEAT]), vmin=0, vmax=1, aspect="auto")
        ax.set_title(row["name"], fontsize=7)
        ax.tick_params(labelsize=6)
        for axis in (ax.xaxis, ax.yaxis):
            axis.set_major_locator(MaxNLocator(integer=True))
    axes[0].set_xlabel("head", fontsize=7)
    axes[0].set_ylabel("layer", fontsize=7)
    figure.colorbar(image, ax=list(axes), shrink=0.6, label="mass relative to the oracle's")
    figure.suptitle(f"{about(rows)}, budget {rows[0]['budget']}", fontsize=9)
    return figure


def layers(rows: Sequence[Row]) -> Figure:
    """Relative mass of each layer, averaged over its heads."""
    figure = Figure(figsize=(11, 5.5), layout="constrained")
    ax = figure.subplots()
    groups = by_selector(rows)
    styles = looks(list(groups))
    for key, own in groups.items():
        mass = np.array(own[0][MASS_HEAT]).mean(axis=1)
        ax.plot(mass, label=own[0]["name"], **styles[key])
    ax.set_xlabel("layer")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set_ylabel("mass relative to the oracle's")
    ax.set_title(f"{about(rows)}, budget {rows[0]['budget']}", fontsize=9)
    ax.grid(alpha=0.3)
    name_ends(ax)
    return figure


def ranking(rows: Sequence[Row]) -> Figure:
    """KL and output error of every selector at one budget, with their intervals."""
    ordered = sorted(rows, key=lambda row: -float(row["kl"][0]))
    figure = Figure(figsize=(11, 0.26 * len(ordered) + 1.2), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    at = np.arange(len(ordered))
    for ax, name in ((left, "kl"), (right, "output_error")):
        x, half = (np.array([row[name][i] for row in ordered]) for i in (0, 1))
        ax.errorbar(x, at, xerr=half, fmt="o", markersize=4, color=COLORS[1])
        ax.set_xscale("log")
        ax.grid(alpha=0.3, which="both")
    left.set_yticks(at, [row["name"] for row in ordered], fontsize=8)
    left.set_xlabel("KL of the next token, nats")
    right.set_xlabel("relative L2 error of the attention output")
    figure.suptitle(f"{about(rows)}, budget {rows[0]['budget']}", fontsize=9)
    return figure


def tasks(rows: Sequence[Row], out: Path) -> None:
    """Pass keys found by depth and length, one panel per selector and budget."""
    passkey = [row for row in rows if row["task"] == "passkey"]
    runs = list(dict.fromkeys((row["name"], row["budget"]) for row in passkey))
    if not runs:
        return
    depths = sorted({row["depth"] for row in passkey})
    lengths = sorted({row["length"] for row in passkey})
    figure, axes = grid(len(runs), 2.4, 2.1)
    for ax, (name, budget) in zip(axes, runs, strict=False):
        share = np.full((len(depths), len(lengths)), np.nan)
        for row in passkey:
            if (row["name"], row["budget"]) == (name, budget):
                share[depths.index(row["depth"]), lengths.index(row["length"])] = row["exact"]
        ax.imshow(share, vmin=0, vmax=1, cmap="RdYlGn", aspect="auto")
        for (i, j), exact in np.ndenumerate(share):
            ax.text(j, i, f"{exact:.2f}", ha="center", va="center", fontsize=6)
        ax.set_title(name if budget is None else f"{name}, {budget}", fontsize=7)
        ax.set_xticks(range(len(lengths)), [str(n) for n in lengths], fontsize=6)
        ax.set_yticks(range(len(depths)), [f"{d:g}" for d in depths], fontsize=6)
    axes[0].set_xlabel("tokens", fontsize=7)
    axes[0].set_ylabel("depth of the key", fontsize=7)
    figure.suptitle("pass key found", fontsize=9)
    save(figure, out / "passkey.png")


def save(figure: Figure, path: Path) -> None:
    with naming(path):
        figure.savefig(path, dpi=DPI)
