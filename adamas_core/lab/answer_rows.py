"""From judged answers to the rows of tables and plots."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from .answers import FULL

SOLVED = 0.8  # a task counts if full attention gets this share of its answers right


def pooled(results: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Rows over examples; `solved` says whether full attention solves the task at that length."""
    groups: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    full: dict[tuple[Any, ...], list[int]] = {}
    for r in results:
        kind = (r["task"], r["length"], r["depth"], r["selector"], r["budget"])
        groups.setdefault(kind, []).append(r)
        if r["selector"] == FULL.key:
            score = full.setdefault((r["task"], r["length"]), [0, 0])
            score[0] += r["right"]
            score[1] += r["asked"]
    rows = []
    for (task, length, depth, selector, budget), group in groups.items():
        asked, right = (sum(r[name] for r in group) for name in ("asked", "right"))
        by_full = full.get((task, length), [0, 1])
        rows.append(
            {
                "task": task,
                "length": length,
                "depth": depth,
                "selector": selector,
                "name": group[0]["name"],
                "budget": budget,
                "asked": asked,
                "right": right,
                "exact": right / asked,
                "solved": by_full[0] / by_full[1] >= SOLVED,
            }
        )
    return rows


def over_depths(rows: Iterable[Mapping[str, Any]]) -> dict[tuple[Any, ...], dict[Any, float]]:
    """Shares of right answers: by (selector's name, budget), then by (task, length)."""
    counts: dict[tuple[Any, ...], dict[Any, list[int]]] = {}
    for row in rows:
        own = counts.setdefault((row["name"], row["budget"]), {})
        score = own.setdefault((row["task"], row["length"]), [0, 0])
        score[0] += row["right"]
        score[1] += row["asked"]
    return {
        run: {kind: right / asked for kind, (right, asked) in own.items()}
        for run, own in counts.items()
    }
