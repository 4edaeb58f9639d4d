"""The sizes of a comparison."""

from __future__ import annotations

import argparse
from typing import Any

import pytest

from adamas_core.cli import sizes

NAMES = ("context", "contexts", "positions", "budgets", "at")


def args(**given: Any) -> argparse.Namespace:
    return argparse.Namespace(**{**dict.fromkeys(NAMES), "quick": False, **given})


def test_usual_sizes_on_a_model_with_room() -> None:
    assert sizes.of_texts(args(), 8192) == sizes.USUAL
    assert sizes.of_texts(args(), 2**31 - 1) == sizes.USUAL
    assert sizes.of_texts(args(quick=True), 8192) == sizes.QUICK


@pytest.mark.parametrize("limit", [17, 32, 100, 1024, 3000])
@pytest.mark.parametrize("quick", [False, True])
def test_defaults_fit_every_model(limit: int, quick: bool) -> None:
    """And each other: a prefix before the positions, and budgets below the context."""
    for given in ({}, {"context": max(limit - limit // 8, 17)}, {"contexts": [limit, 17]}):
        context, contexts, positions, budgets, at = sizes.of_texts(
            args(quick=quick, **given), limit
        )
        assert max(context, *contexts, 1) <= limit
        assert 16 <= positions < min([context, *contexts])
        assert all(b < context for b in budgets) or len(budgets) == 1
        assert at <= max(budgets)
    assert max(sizes.of_tasks(args(quick=quick), limit)[0], default=0) <= limit


def test_given_sizes_stay() -> None:
    given = {"context": 64, "contexts": [32, 48, 32], "positions": 16, "budgets": [9, 8], "at": 5}
    assert sizes.of_texts(args(**given), 8192) == (64, (32, 48), 16, (9, 8), 5)
    assert sizes.of_tasks(args(**given), 8192) == ((32, 48), (9, 8))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"context": 16}, "^--context: 16; expected at least 17$"),
        ({"contexts": [99, 3]}, "^--contexts: 3; expected at least 17$"),
        (
            {"context": 99, "positions": 99},
            "^--positions: 99; expected fewer than 99, the shortest context$",
        ),
    ],
)
def test_sizes_that_do_not_fit(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sizes.of_texts(args(**given), 8192)
