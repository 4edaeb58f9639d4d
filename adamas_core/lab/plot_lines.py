"""The lines of a plot: at most eight, with the name of each at its end."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import chain
from typing import Any

import numpy as np
from matplotlib.axes import Axes

MOST = 8
# Colors of Okabe and Ito, which most color-blind readers can tell apart. Gray stands for their
# yellow, which is too light for a thin line. The markers differ too.
COLORS = (
    "#000000",
    "#0072b2",
    "#d55e00",
    "#009e73",
    "#e69f00",
    "#cc79a7",
    "#56b4e9",
    "#7f7f7f",
)
MARKERS = "osDP^vX*"
# These have the same look in every plot.
FIXED = ("exact", "adamas", "tail-1024")
GAP = 0.045  # between the names at the ends of lines, as a share of the panel's height


def chosen(keys: Iterable[str], first: Sequence[str]) -> list[str]:
    """At most eight of the keys: those in `first`, in its order, then the others in theirs."""
    measured = list(dict.fromkeys(keys))
    ordered = chain((key for key in first if key in measured), measured)
    return list(dict.fromkeys(ordered))[:MOST]


def looks(keys: Sequence[str]) -> dict[str, dict[str, Any]]:
    """The color and marker of each of at most eight keys."""
    taken = {key: FIXED.index(key) for key in keys if key in FIXED}
    rest = [*range(len(FIXED), MOST), *range(len(FIXED))]  # the looks of FIXED come last
    free = iter([i for i in rest if i not in taken.values()])
    number = {key: taken[key] if key in taken else next(free) for key in keys}
    return {
        key: {"color": COLORS[i], "marker": MARKERS[i], "markersize": 5, "linewidth": 1.3}
        for key, i in number.items()
    }


def name_ends(ax: Axes, fontsize: float = 8, gap: float = GAP) -> None:
    """Write the label of each line at the right of the panel, joined to the line's last point."""
    lines = [line for line in ax.get_lines() if not str(line.get_label()).startswith("_")]
    if not lines:
        return
    to_panel = ax.transScale + ax.transLimits
    ends = [tuple(np.asarray(line.get_xydata())[-1]) for line in lines]
    heights = [float(to_panel.transform(end)[1]) for end in ends]
    for line, end, height in zip(lines, ends, spread(heights, gap), strict=True):
        ax.annotate(
            str(line.get_label()),
            end,
            (1.03, height),
            textcoords="axes fraction",
            annotation_clip=False,
            color=line.get_color(),
            fontsize=fontsize,
            va="center",
            arrowprops={
                "arrowstyle": "-",
                "color": line.get_color(),
                "linewidth": 0.6,
                "linestyle": ":",
                "shrinkA": 0,
                "shrinkB": 3,
            },
        )


def spread(heights: Sequence[float], gap: float) -> list[float]:
    """Heights from 0 to 1, moved apart to at least `gap`, in the same order.

    The sum of the squared moves is the least. If there is no room from 0 to 1, the lowest stay at 0
    and the highest are above 1.
    """
    order = np.argsort(heights, kind="stable")
    # Without i * gap, heights that are far enough apart ascend, and all others become equal.
    runs: list[list[float]] = []
    for i, at in enumerate(order):
        runs.append([heights[at] - i * gap])
        while len(runs) > 1 and np.mean(runs[-2]) >= np.mean(runs[-1]):
            runs[-2:] = [runs[-2] + runs[-1]]
    most = max(1 - gap * (len(heights) - 1), 0.0)
    level = [min(max(float(np.mean(run)), 0.0), most) for run in runs for _ in run]
    moved = [0.0] * len(heights)
    for i, at in enumerate(order):
        moved[at] = level[i] + i * gap
    return moved
