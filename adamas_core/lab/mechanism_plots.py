"""The plot of ``adamas-core mechanisms``: what a step costs as a function of S, as a PNG file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from .plot_lines import looks, name_ends
from .plots import save

# At most eight lines can be told apart. The table has all mechanisms.
SHOWN = ("softmax", "adamas", "mla", "dsa", "strided", "window", "log-linear", "gated-delta")
PANELS = {
    "operations": "operations of a step",
    "read": "bytes read in a step",
    "kept": "bytes kept",
}


def costs(report: Mapping[str, Any], out: Path) -> None:
    """Write costs.png from a report of the command: a panel per cost, a line per mechanism."""
    rows, lengths = report["rows"], report["steps"]
    by_name = {row["mechanism"]: row for row in rows}
    style = looks(SHOWN)
    figure = Figure(figsize=(15, 5), layout="constrained")
    for ax, (field, title) in zip(figure.subplots(1, len(PANELS)), PANELS.items(), strict=True):
        for name in (name for name in SHOWN if name in by_name):
            if by_name[name][field] is not None:
                ax.plot(lengths, by_name[name][field], label=by_name[name]["name"], **style[name])
        ax.set(xscale="log", yscale="log", xlabel="tokens", title=title)
        ax.set_xticks([S + 1 for S in lengths], [f"{(S + 1) // 1024}K" for S in lengths])
        ax.minorticks_off()
        name_ends(ax)
    save(figure, out / "costs.png")
