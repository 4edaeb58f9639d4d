"""From measurements to cells, and from cells to the rows of tables and plots.

A cell is one measurement: a text, a context, a selector and a budget. A row pools cells over texts.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from .metrics import Captured, NextToken, batch_mean
from .selectors import SELECTORS
from .variants import ablations

# Figures with a 95% interval: a mean over positions and half of the interval's width.
MEANS = ("kl", "loss_gain", "agreement", "mass", "relative_mass", "recall", "output_error")
# Figures without an interval, and figures that do not depend on the text.
AVERAGED = (
    "kl_median",
    "relative_mass_worst_tenth",
    "relative_mass_tenth_percentile",
    "ms_to_choose",
)
BYTES = ("bytes_kept", "bytes_to_choose", "bytes_a_step", "bytes_a_step_full")
WORST = 0.1  # the share of layers, heads and positions in the worst tenth


def cell(
    full: NextToken,
    sparse: NextToken,
    captured: Captured,
    description: Mapping[str, Any],
) -> dict[str, Any]:
    """A finished cell: its description and the measured figures, as plain numbers."""
    ordered = np.sort(captured.relative.reshape(-1))
    tenth = max(int(WORST * len(ordered)), 1)
    by_position = {
        "kl": sparse.kl,
        "loss_gain": sparse.loss - full.loss,
        "agreement": sparse.agrees,
        "mass": captured.mass.mean(axis=(0, 1)),
        "relative_mass": captured.relative.mean(axis=(0, 1)),
        "recall": captured.recall.mean(axis=(0, 1)),
        "output_error": captured.error.mean(axis=(0, 1)),
    }
    means = {name: batch_mean(x) for name, x in by_position.items()}
    return {
        **description,
        **{name: [rounded(mean.value), rounded(mean.half)] for name, mean in means.items()},
        "kl_median": rounded(float(np.median(sparse.kl))),
        "perplexity_full": rounded(math.exp(full.loss.mean())),
        "relative_mass_worst_tenth": rounded(float(ordered[:tenth].mean())),
        "relative_mass_tenth_percentile": rounded(float(ordered[tenth - 1])),
        "ms_to_choose": rounded(1e3 * captured.seconds / len(sparse.kl)),
        "relative_mass_by_layer_and_head": [
            [round(float(x), 3) for x in row] for row in captured.relative.mean(axis=-1)
        ],
    }


def rounded(x: float) -> float:
    """Round to five significant digits, which is finer than the intervals."""
    return float(f"{x:.5g}")


def on_common_texts(cells: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The cells of the texts on which every (context, selector, budget) of the cells was measured.

    All cells if there is no such text.
    """
    groups: dict[tuple[Any, ...], set[str]] = {}
    for c in cells:
        groups.setdefault((c["context"], c["selector"], c["budget"]), set()).add(c["text"])
    common = set.intersection(*groups.values())
    return [c for c in cells if c["text"] in common or not common]


def pooled(cells: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Rows over all texts of the same context, selector and budget, in the order of tables.

    Each text counts once in a mean over texts. The interval takes texts as independent.
    """
    groups: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for c in cells:
        groups.setdefault((c["context"], c["selector"], c["budget"]), []).append(c)
    rows = []
    keys = [*SELECTORS, *(variant.key for variant in ablations())]
    order = {key: i for i, key in enumerate(keys)}  # a record may hold other, older selectors: last
    places = sorted(groups, key=lambda g: (g[0], order.get(g[1], len(order)), g[2]))
    for context, selector, budget in places:
        group = groups[context, selector, budget]
        n = len(group)
        row: dict[str, Any] = {
            "context": context,
            "selector": selector,
            "budget": budget,
            "name": group[0]["name"],
            "texts": [c["text"] for c in group],
        }
        for name in MEANS:
            half = math.sqrt(sum(c[name][1] ** 2 for c in group)) / n
            row[name] = [rounded(sum(c[name][0] for c in group) / n), rounded(half)]
        gain, half = row["loss_gain"]
        row["perplexity_ratio"] = [rounded(math.exp(gain)), rounded(math.exp(gain) * half)]
        for name in AVERAGED:
            row[name] = rounded(sum(c[name] for c in group) / n)
        for name in BYTES:  # equal for all texts
            row[name] = group[0][name]
        heat = np.mean([c["relative_mass_by_layer_and_head"] for c in group], axis=0)
        row["relative_mass_by_layer_and_head"] = [[round(float(x), 3) for x in r] for r in heat]
        rows.append(row)
    return rows
