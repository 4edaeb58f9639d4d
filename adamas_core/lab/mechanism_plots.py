"""The plot of ``adamas-core mechanisms``: what a step costs as a function of S, as a PNG file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from .mechanism_costs import STEPS
from .plot_lines import looks, name_ends
from .plots import save

# At most eight lines can be told apart. The table has all mechanisms.
SHOWN = ("softmax", "adamas", "mla", "dsa", "strided", "window", "log-linear", "gated-delta")
PANELS = {
    "operations": "operations of a step",
    "read": "bytes read in a step",
    "kept": "bytes kept",
}


def costs(rows: Sequence[Mapping[str, Any]], out: Path) -> None:
    """Write costs.png: a panel per cost, a line per mechanism."""
    by_name = {row["mechanism"]: row for row in rows}
    style = looks(SHOWN)
    figure = Figure(figsize=(15, 5), layout="constrained")
    for ax, (field, title) in zip(figure.subplots(1, len(PANELS)), PANELS.items(), strict=True):
        for name in SHOWN:
            if by_name[name][field] is not None:
                ax.plot(STEPS, by_name[name][field], label=by_name[name]["name"], **style[name])
        ax.set(xscale="log", yscale="log", xlabel="tokens", title=title)
        ax.set_xticks([S + 1 for S in STEPS], [f"{(S + 1) // 1024}K" for S in STEPS])
        ax.minorticks_off()
        name_ends(ax)
    save(figure, out / "costs.png")
