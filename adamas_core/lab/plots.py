"""The plots of `adamas-core compare`, as PNG files."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ..file_errors import naming
from .results import on_common_texts, pooled
from .selectors import SELECTORS

Row = Mapping[str, Any]
DPI = 90
BASE = ("exact", "paper", "paper-quartiles", "adamas")  # shown beside ablations
MARKERS = "osD^v<>PXph*"
# Twelve colors that also differ in lightness. With twelve markers they distinguish all selectors.
COLORS_LINE = (
    "#000000 #0072b2 #d55e00 #009e73 #cc79a7 #e6ab02 #56b4e9 #8c564b #7f7f7f #7570b3 #66a61e "
    "#e7298a"
)
COLORS = tuple(COLORS_LINE.split())


def quality(cells: Sequence[Row], out: Path, context: int, at: int) -> None:
    """All plots of finished cells: by budget at `context`, the rest at the budget `at`.

    All curves of a plot are averages over the same texts: those that all of them were measured on.
    """
    known = [c for c in cells if c["selector"] in SELECTORS]
    by_budget = [c for c in known if c["context"] == context]
    at_budget = [c for c in known if c["budget"] == at]
    here = [c for c in by_budget if c["budget"] == at]
    plots = {
        "front": (front, by_budget),
        "budgets": (budgets, swept(by_budget, "budget")),
        "contexts": (contexts, swept(at_budget, "context")),
        "heat": (heat, here),
        "layers": (layers, here),
        "selectors": (ranking, here),
    }
    changed = [c for c in cells if (c["context"], c["budget"]) == (context, at)]
    if any(c["selector"] not in SELECTORS for c in changed):
        compared = [c for c in changed if c["selector"] not in SELECTORS or c["selector"] in BASE]
        plots["ablations"] = (ranking, compared)
    for name, (plot, shown) in plots.items():
        if shown:
            save(plot(pooled(on_common_texts(shown))), out / f"{name}.png")


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
        groups.setdefault(row["name"], []).append(row)
    return groups


def look(i: int) -> dict[str, Any]:
    """Color and marker of the i-th selector."""
    shade = 1 - 0.35 * (i // len(COLORS))
    red, green, blue = (shade * c for c in to_rgb(COLORS[i % len(COLORS)]))
    marker = MARKERS[(i + i // len(COLORS)) % len(MARKERS)]
    return {"color": (red, green, blue), "marker": marker, "markersize": 4, "linewidth": 1.1}


def curves(
    ax: Axes, rows: Sequence[Row], x: str, y: str, title: str, figure: Callable[[Row], float]
) -> None:
    """One line per selector: `figure` of `y` over `x`, with its interval if there is one."""
    for i, (name, own) in enumerate(by_selector(rows).items()):
        own = sorted(own, key=lambda row: float(row[x]))
        at = [row[x] for row in own]
        ax.plot(at, [figure(row) for row in own], label=name, **look(i))
        if isinstance(own[0][y], list):
            low = [figure(row) - row[y][1] for row in own]
            high = [figure(row) + row[y][1] for row in own]
            ax.fill_between(at, low, high, color=look(i)["color"], alpha=0.08, linewidth=0)
    ax.set_xscale("log", base=2)
    ax.set_xticks(sorted({row[x] for row in rows}))
    ax.set_xticklabels([str(value) for value in sorted({row[x] for row in rows})])
    ax.minorticks_off()
    ax.set_title(title, fontsize=9)
    ax.tick_params(labelsize=8)
    ax.grid(alpha=0.3)


def value(name: str) -> Callable[[Row], float]:
    """A row's figure, without its interval."""
    return lambda row: float(row[name][0] if isinstance(row[name], list) else row[name])


PANELS = (
    ("kl", "KL of the next token, nats"),
    ("perplexity_ratio", "perplexity relative to full attention"),
    ("agreement", "top-1 agreement with full attention"),
    ("relative_mass", "attention mass relative to the oracle's"),
    ("relative_mass_worst_tenth", "relative mass, mean of the worst tenth"),
    ("mass", "share of all attention mass"),
    ("recall", "recall of the oracle's tokens"),
    ("output_error", "relative L2 error of the attention output"),
)


def panels(rows: Sequence[Row], x: str, label: str, title: str) -> Figure:
    """One panel per figure of PANELS."""
    figure = Figure(figsize=(15, 9), layout="constrained")
    axes = figure.subplots(2, 4).ravel()
    for ax, (name, heading) in zip(axes, PANELS, strict=True):
        curves(ax, rows, x, name, heading, value(name))
        ax.set_xlabel(label, fontsize=8)
    axes[0].set_yscale("log")
    axes[1].set_yscale("log")
    figure.suptitle(title, fontsize=10)
    handles, names = axes[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=6, fontsize=8)
    return figure


def budgets(rows: Sequence[Row]) -> Figure:
    return panels(rows, "budget", "budget, tokens per query head", f"by budget, {about(rows)}")


def contexts(rows: Sequence[Row]) -> Figure:
    return panels(
        rows, "context", "context, tokens", f"by context, budget {rows[0]['budget']}, {texts(rows)}"
    )


def front(rows: Sequence[Row]) -> Figure:
    """Mass against bytes read per step; up and to the left is better."""
    figure = Figure(figsize=(11, 7), layout="constrained")
    ax = figure.subplots()
    for i, (name, own) in enumerate(by_selector(rows).items()):
        own = sorted(own, key=lambda row: float(row["budget"]))
        share = [row["bytes_a_step"] / row["bytes_a_step_full"] for row in own]
        ax.plot(share, [row["mass"][0] for row in own], label=name, **look(i))
    ax.set_xscale("log")
    ax.set_xlabel(
        "bytes read per step, to choose and for the chosen K and V, as a share of full attention's"
    )
    ax.set_ylabel("share of all attention mass")
    listed = ", ".join(str(b) for b in sorted({row["budget"] for row in rows}))
    ax.set_title(f"{about(rows)}; points of a line are budgets of {listed}", fontsize=9)
    ax.grid(alpha=0.3, which="both")
    ax.legend(fontsize=8, loc="lower right")
    return figure


def grid(count: int, width: float, height: float) -> tuple[Figure, Any]:
    """`count` panels of width x height inches, up to six per line."""
    columns = min(6, count)
    lines = -(-count // columns)
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
        image = ax.imshow(
            np.array(row["relative_mass_by_layer_and_head"]), vmin=0, vmax=1, aspect="auto"
        )
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
    for i, (name, own) in enumerate(by_selector(rows).items()):
        mass = np.array(own[0]["relative_mass_by_layer_and_head"]).mean(axis=1)
        ax.plot(mass, label=name, **look(i))
    ax.set_xlabel("layer")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set_ylabel("mass relative to the oracle's")
    ax.set_title(f"{about(rows)}, budget {rows[0]['budget']}", fontsize=9)
    ax.grid(alpha=0.3)
    figure.legend(loc="outside right upper", fontsize=7)
    return figure


def ranking(rows: Sequence[Row]) -> Figure:
    """KL and mass of every selector at one budget, with their intervals."""
    ordered = sorted(rows, key=lambda row: -float(row["kl"][0]))
    figure = Figure(figsize=(11, 0.26 * len(ordered) + 1.2), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    at = np.arange(len(ordered))
    for ax, name in ((left, "kl"), (right, "relative_mass")):
        x, half = (np.array([row[name][i] for row in ordered]) for i in (0, 1))
        ax.errorbar(x, at, xerr=half, fmt="o", markersize=4, color=COLORS[1])
        ax.grid(alpha=0.3, which="both")
    left.set_xscale("log")
    left.set_yticks(at, [row["name"] for row in ordered], fontsize=8)
    left.set_xlabel("KL of the next token, nats")
    right.set_xlabel("attention mass relative to the oracle's")
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
