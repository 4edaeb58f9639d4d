"""Rows over examples and depths."""

from __future__ import annotations

from typing import Any

from adamas_core.lab import answer_rows


def result(selector: str, right: int, depth: float, task: str = "passkey") -> dict[str, Any]:
    budget = None if selector == "full" else 64
    description = {
        "task": task,
        "length": 500,
        "depth": depth,
        "selector": selector,
        "budget": budget,
    }
    return {**description, "name": selector, "asked": 4, "right": right}


def test_rows_over_examples_and_what_full_attention_solves() -> None:
    cells = [result("full", 4, 0.0), result("full", 3, 1.0), result("quest", 1, 0.0)]
    cells += [result("quest", 2, 0.0), result("full", 3, 0.0, "word counts")]
    rows = answer_rows.pooled(cells)
    found = [(row["task"], row["selector"], row["depth"], row["exact"]) for row in rows]
    assert found == [
        ("passkey", "full", 0.0, 1.0),
        ("passkey", "full", 1.0, 0.75),
        ("passkey", "quest", 0.0, 3 / 8),
        ("word counts", "full", 0.0, 0.75),
    ]
    assert [row["solved"] for row in rows] == [True, True, True, False]  # 7 of 8, and 3 of 4
    shares = answer_rows.over_depths(rows)
    assert shares["full", None] == {("passkey", 500): 7 / 8, ("word counts", 500): 0.75}
