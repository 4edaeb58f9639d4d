"""From finished cells to the figures of tables and plots: one row a selector, over all texts."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from ..reference.selectors import SELECTORS
from .ablations import Variant, ablations
from .evaluate import Captured, NextToken, batch_mean

# Means over positions, each with half of its 95% interval.
MEANS = ("kl", "loss_gain", "agreement", "mass", "relative_mass", "recall", "output_error")
# Others that are averaged over texts, and those that do not depend on the text.
AVERAGED = (
    "kl_median",
    "relative_mass_worst_tenth",
    "relative_mass_tenth_percentile",
    "ms_to_choose",
)
BYTES = ("bytes_kept", "bytes_to_choose", "bytes_a_step", "bytes_a_step_full")
WORST = 0.1  # the share that the worst tenth is


def cell(
    full: NextToken,
    sparse: NextToken,
    captured: Captured,
    variant: Variant,
    facts: Mapping[str, Any],
) -> dict[str, Any]:
    """A finished cell: `facts` and what was measured, in plain numbers."""
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
        **facts,
        "selector": variant.key,
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
    """Five significant digits: more than the intervals leave."""
    return float(f"{x:.5g}")


def on_common_texts(cells: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The cells of the texts on which every (context, selector, budget) among them was measured.

    Where there is no such text, all of them.
    """
    groups: dict[tuple[Any, ...], set[str]] = {}
    for c in cells:
        groups.setdefault((c["context"], c["selector"], c["budget"]), set()).add(c["text"])
    common = set.intersection(*groups.values())
    return [c for c in cells if c["text"] in common or not common]


def pooled(cells: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Rows over all texts of the same context, selector and budget, in the order of tables.

    A mean over texts has each text count once; its interval is that of independent texts.
    """
    groups: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for c in cells:
        groups.setdefault((c["context"], c["selector"], c["budget"]), []).append(c)
    rows = []
    order = [*SELECTORS, *(variant.key for variant in ablations())]
    for context, selector, budget in sorted(groups, key=lambda g: (g[0], order.index(g[1]), g[2])):
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
        for name in BYTES:  # the same of all texts
            row[name] = group[0][name]
        heat = np.mean([c["relative_mass_by_layer_and_head"] for c in group], axis=0)
        row["relative_mass_by_layer_and_head"] = [[round(float(x), 3) for x in r] for r in heat]
        rows.append(row)
    return rows
