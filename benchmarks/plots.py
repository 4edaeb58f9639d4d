"""Draw the figures of results from their JSON.

    python benchmarks/plots.py              # all results
    python benchmarks/plots.py FILE.json

Each benchmark also draws its own figure at its end.
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, NullFormatter

RESULTS = Path(__file__).parent / "results"
Rows = list[dict[str, Any]]

# A peer has the same color in every figure.
COLORS = {
    "manhattan": "#0b6e4f",
    "weighted 4": "#c1121f",
    "weighted 3": "#f08a24",
    "floor": "#222222",
    "PyTorch": "#3a6fb0",
    "ONNX Runtime": "#8a5fb5",
    "llama.cpp": "#777777",
    "NumPy": "#56b4d3",
}
STAGES = {
    "prepare": "#f2c14e",
    "scan": "#0b6e4f",
    "select": "#7fb069",
    "attend": "#3a6fb0",
    "rest": "#bbbbbb",
    "program": "#e3d5ca",
}
plt.rcParams |= {
    "figure.dpi": 120,
    "figure.figsize": (7.5, 4.8),
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e4e4e4",
    "axes.axisbelow": True,
    "legend.frameon": False,
    "legend.fontsize": 9,
}


def draw(path: Path) -> None:
    """Draw the figure of one result, into its folder. A table has no figure."""
    result = json.loads(path.read_text())
    kind = result["figure"].split("-")[1] if "figure" in result else ""
    if kind not in FIGURES or not result["rows"]:
        return
    figure, axes = plt.subplots(layout="constrained")
    FIGURES[kind](axes, result["rows"])
    figure.supxlabel(subtitle(result), fontsize=8, color="#666666")
    target = path.with_suffix(".png")
    figure.savefig(target)
    plt.close(figure)
    print(f"wrote {target}")


def subtitle(result: dict[str, Any]) -> str:
    arguments = result["arguments"]
    threads = "1 thread" if result["threads"] == 1 else f"{result['threads']} threads"
    words = [result["device"], threads, arguments["dtype"], "cold, median"]
    return ", ".join([*words, result["date"][:10]])


def lines(axes: Axes, rows: Rows, x: str, label: str) -> None:
    """Plot time against x, log-log. Our forms and floors are thick, peers thin, p10-p90 shaded."""
    series: dict[str, Rows] = defaultdict(list)
    for row in rows:
        series["floor" if row["name"].startswith("read ") else row["name"]].append(row)
    for name, points in series.items():
        # Forms that touch different numbers of bytes have different floors. Draw the lowest.
        lowest = {}
        for point in sorted(points, key=lambda p: -p.get("MB", 0)):
            lowest[point[x]] = point
        at = sorted(lowest)
        style = {"color": color(name), "marker": "o", "markersize": 3.5}
        peer = lowest[at[0]].get("peer")
        style["linewidth"] = 1.2 if peer not in (None, "adamas-core") else 2
        shown = {"floor": "floor: read the same bytes"}.get(name, name)
        if name == "floor":
            style |= {"linestyle": ":", "marker": ""}
        axes.plot(at, [lowest[i]["ms"] for i in at], label=shown, **style)
        low, high = ([lowest[i][key] for i in at] for key in ("p10", "p90"))
        axes.fill_between(at, low, high, color=color(name), alpha=0.12, linewidth=0)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xlabel(label)
    axes.set_ylabel("ms per step")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda n, _: count(n)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda n, _: f"{n:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    legend(axes)


def legend(axes: Axes) -> None:
    """Put the legend below the axes, where it hides no line."""
    axes.legend(ncols=4, loc="upper center", bbox_to_anchor=(0.5, -0.12))


def color(name: str) -> str:
    return COLORS[name.split(",")[0]]


def count(n: float) -> str:
    """Format 1024 as 1K."""
    for size, letter in ((1 << 20, "M"), (1 << 10, "K")):
        if n >= size:
            return f"{n / size:g}{letter}"
    return f"{n:g}"


def plot_length(axes: Axes, rows: Rows) -> None:
    lines(axes, rows, "tokens", "tokens in the cache")
    axes.set_title(f"One decode step, {rows[0]['heads']} heads")


def plot_budget(axes: Axes, rows: Rows) -> None:
    """Plot time against the budget. Peers do not depend on it and are horizontal lines."""
    budgets = sorted({row["budget"] for row in rows})
    lines(axes, [r for r in rows if not is_dense(r)], "budget", "budget, tokens per query head")
    for row in rows:
        if is_dense(row) and row["budget"] == budgets[0]:
            axes.axhline(row["ms"], color=color(row["name"]), linewidth=1.2, label=row["name"])
    legend(axes)
    axes.set_title(f"One decode step, {rows[0]['heads']} heads, {count(rows[0]['tokens'])} tokens")


def plot_stages(axes: Axes, rows: Rows) -> None:
    """Plot one bar per case and metric, made of the parts of a step, with a mark at the floor."""
    labels = []
    keys = list(dict.fromkeys((r["heads"], r["tokens"], r["name"]) for r in rows))
    for y, key in enumerate(keys):
        parts = {r["form"]: r["ms"] for r in rows if (r["heads"], r["tokens"], r["name"]) == key}
        left = 0.0
        for part, tint in STAGES.items():
            width = max(parts[part], 0.0)
            axes.barh(y, width, left=left, color=tint, label=part if y == 0 else None, height=0.7)
            left += width
        label = {"step": "whole step", "floor": "floor"} if y == 0 else {}
        ends = [y - 0.42, y + 0.42]
        axes.plot([parts["step"]] * 2, ends, color="#c1121f", label=label.get("step"))
        axes.plot([parts["floor"]] * 2, ends, color="#222222", ls=":", label=label.get("floor"))
        labels.append(f"{key[0]}, {count(key[1])}\n{key[2]}")
    axes.set_yticks(range(len(labels)), labels)
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    axes.set_xlabel("ms")
    axes.set_title("Where a decode step's time goes")
    legend(axes)


def plot_threads(axes: Axes, rows: Rows) -> None:
    """Plot times by thread count, labelled with the gain over one thread."""
    counts = sorted({row["threads"] for row in rows})
    series: dict[str, dict[int, Rows]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        name = "floor" if row["name"].startswith("read ") else row["name"]
        series[name][row["threads"]].append(row)
    width = 0.8 / len(counts)
    names = list(series)
    for i, n in enumerate(counts):
        ms = [min(r["ms"] for r in series[name][n]) for name in names]
        one = [min(r["ms"] for r in series[name][counts[0]]) for name in names]
        at = [x + (i - (len(counts) - 1) / 2) * width for x in range(len(names))]
        tint = [color(name) for name in names]
        bars = axes.bar(at, ms, width * 0.92, color=tint, alpha=0.45 + 0.55 * (i > 0))
        texts = [
            f"{t:.3g}" if i == 0 else f"{t:.3g}\n{a / t:.1f}x" for t, a in zip(ms, one, strict=True)
        ]
        axes.bar_label(bars, texts, fontsize=8)
    axes.set_xticks(range(len(names)), [name.replace(" ", "\n", 1) for name in names])
    axes.set_yscale("log")
    axes.margins(y=0.15)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda n, _: f"{n:g}"))
    axes.grid(axis="x", visible=False)
    axes.set_ylabel("ms per step")
    many = " and ".join(map(str, counts))
    axes.set_title(
        f"On {many} threads, {rows[0]['heads']} heads, {count(rows[0]['tokens'])} tokens"
    )


def is_dense(row: dict[str, Any]) -> bool:
    return row.get("peer") not in (None, "adamas-core")


FIGURES = {
    "length": plot_length,
    "budget": plot_budget,
    "stages": plot_stages,
    "threads": plot_threads,
}


if __name__ == "__main__":
    for path in map(Path, sys.argv[1:]) if sys.argv[1:] else sorted(RESULTS.glob("*.json")):
        draw(path)
