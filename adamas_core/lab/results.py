"""From measurements to cells, and from cells to the rows of tables and plots.

A cell is one measurement: a text, a context, a selector and a budget. A row pools cells over texts.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .metrics import Captured, Choice, NextToken, batch_mean
from .selectors import SELECTORS
from .variants import ablations

# Figures with a 95% interval: a mean over positions and half of the interval's width.
MEANS = ("kl", "loss_gain", "agreement", "mass", "relative_mass", "recall", "output_error")
# Figures without an interval, and figures that do not depend on the text.
AVERAGED = (
    "kl_median",
    "output_error_worst_tenth",
    "relative_mass_worst_tenth",
    "relative_mass_tenth_percentile",
    "ms_to_choose",
)
BYTES = ("bytes_kept", "bytes_to_choose", "bytes_of_rows", "bytes_a_step", "bytes_a_step_full")
# Figures per layer and head.
HEATS = ("relative_mass_by_layer_and_head", "output_error_by_layer_and_head")
# The figures of a choice of tokens. A form has none of them.
OF_CHOICES = (
    "mass",
    "relative_mass",
    "recall",
    "relative_mass_worst_tenth",
    "relative_mass_tenth_percentile",
    "ms_to_choose",
    "relative_mass_by_layer_and_head",
)
WORST = 0.1  # the share of layers, heads and positions in the worst tenth


def cell(
    full: NextToken,
    sparse: NextToken,
    captured: Captured,
    description: Mapping[str, Any],
) -> dict[str, Any]:
    """A finished cell: its description and the measured figures, as plain numbers."""
    error = captured.error
    by_position = {
        "kl": sparse.kl,
        "loss_gain": sparse.loss - full.loss,
        "agreement": sparse.agrees,
        "output_error": error.mean(axis=(0, 1)),
    }
    choice = dict.fromkeys(OF_CHOICES) if captured.choice is None else of_choice(captured.choice)
    return {
        **description,
        **{name: mean_of(x) for name, x in by_position.items()},
        "kl_median": rounded(float(np.median(sparse.kl))),
        "perplexity_full": rounded(math.exp(full.loss.mean())),
        "output_error_worst_tenth": rounded(float(-worst(-error).mean())),
        "output_error_by_layer_and_head": heat(error),
        **choice,
    }


def of_choice(choice: Choice) -> dict[str, Any]:
    """The figures of chosen tokens."""
    least = worst(choice.relative)
    return {
        "mass": mean_of(choice.mass.mean(axis=(0, 1))),
        "relative_mass": mean_of(choice.relative.mean(axis=(0, 1))),
        "recall": mean_of(choice.recall.mean(axis=(0, 1))),
        "relative_mass_worst_tenth": rounded(float(least.mean())),
        "relative_mass_tenth_percentile": rounded(float(least[-1])),
        "ms_to_choose": rounded(1e3 * choice.seconds / choice.mass.shape[-1]),
        "relative_mass_by_layer_and_head": heat(choice.relative),
    }


def mean_of(by_position: NDArray[Any]) -> list[float]:
    """The mean over positions (L,) and half of its interval."""
    return [rounded(x) for x in batch_mean(by_position)]


def worst(x: NDArray[Any]) -> NDArray[Any]:
    """The least tenth of all numbers (N, H, L), ascending."""
    return np.sort(x.reshape(-1))[: max(int(WORST * x.size), 1)]


def heat(x: NDArray[Any]) -> list[list[float]]:
    """Means over positions of x (N, H, L)."""
    return [[round(float(y), 4) for y in row] for row in x.mean(axis=-1)]


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
            row[name] = over_texts(group, name)
        gain, half = row["loss_gain"]
        row["perplexity_ratio"] = [rounded(math.exp(gain)), rounded(math.exp(gain) * half)]
        for name in AVERAGED:
            known = all_of(group, name)
            row[name] = None if known is None else rounded(sum(known) / n)
        for name in BYTES:  # equal for all texts
            row[name] = group[0].get(name)
        for name in HEATS:
            known = all_of(group, name)
            row[name] = None if known is None else np.mean(known, axis=0).round(4).tolist()
        rows.append(row)
    return rows


def over_texts(group: Sequence[Mapping[str, Any]], name: str) -> list[float] | None:
    """The mean of a figure over the cells of a group, and half of its interval."""
    known = all_of(group, name)
    if known is None:
        return None
    half = math.sqrt(sum(x[1] ** 2 for x in known)) / len(known)
    return [rounded(sum(x[0] for x in known) / len(known)), rounded(half)]


def all_of(group: Sequence[Mapping[str, Any]], name: str) -> list[Any] | None:
    """A figure of each cell, or None if a cell lacks it: forms and older records lack some."""
    found = [c.get(name) for c in group]
    return None if any(x is None for x in found) else found
