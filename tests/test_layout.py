"""Sizes that every backend shares."""

from __future__ import annotations

import pytest

from adamas_core.reference.layout import INVISIBLE, MAX_HEAD_DIM, TILE, padded, tiles, words


@pytest.mark.parametrize(
    ("head_dim", "Dt", "P"),
    [(1, 1, 1), (2, 2, 1), (3, 4, 1), (64, 64, 1), (65, 128, 2), (80, 128, 2), (2048, 2048, 32)],
)
def test_a_head(head_dim: int, Dt: int, P: int) -> None:
    assert padded(head_dim) == Dt
    assert words(head_dim) == P


@pytest.mark.parametrize(("tokens", "T"), [(0, 0), (1, 1), (TILE, 1), (TILE + 1, 2)])
def test_tiles(tokens: int, T: int) -> None:
    assert tiles(tokens) == T


def test_the_largest_distance_is_visible() -> None:
    assert 3 * 7 * MAX_HEAD_DIM < INVISIBLE
