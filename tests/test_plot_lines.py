"""Which lines a plot has, how they look, and where their names stand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("matplotlib")

from matplotlib.figure import Figure

from adamas_core.lab import plot_lines
from adamas_core.lab.plot_lines import chosen, looks, name_ends, spread


def test_at_most_eight_lines() -> None:
    keys = [f"s{i}" for i in range(12)]
    assert chosen([*keys, "s3"], ["s11", "missing", "s2"]) == ["s11", "s2", *keys[:2], *keys[3:7]]
    assert chosen(["a", "b", "a"], ["b"]) == ["b", "a"]


@pytest.mark.parametrize(
    "keys",
    [
        [f"s{i}" for i in range(8)],
        ["s0", "tail-1024", "s1", "exact", "s2", "s3", "adamas", "s4"],
        ["s0", "s1"],
    ],
)
def test_every_line_has_its_own_color_and_marker(keys: list[str]) -> None:
    found = looks(keys)
    assert list(found) == keys
    for name in ("color", "marker"):
        assert len({look[name] for look in found.values()}) == len(keys)


def test_some_selectors_look_alike_in_every_plot() -> None:
    alone = looks(["tail-1024"])["tail-1024"]
    assert looks([*(f"s{i}" for i in range(5)), "exact", "tail-1024"])["tail-1024"] == alone
    others = {look["color"] for look in looks([f"s{i}" for i in range(5)]).values()}
    assert alone["color"] not in others


heights_ = st.lists(st.floats(0, 1), min_size=1, max_size=8)


@given(heights=heights_)
def test_names_do_not_overlap(heights: list[float]) -> None:
    gap = 0.1
    moved = spread(heights, gap)
    order = np.argsort(heights, kind="stable")
    assert (np.diff(np.array(moved)[order]) >= gap - 1e-9).all()
    assert -1e-9 <= min(moved) <= max(moved) <= 1 + 1e-9


def test_names_move_no_more_than_they_must() -> None:
    assert spread([0.2, 0.9, 0.5], 0.1) == pytest.approx([0.2, 0.9, 0.5])
    assert spread([0.5, 0.5, 0.5], 0.1) == pytest.approx([0.4, 0.5, 0.6])
    assert spread([0.0, 0.0], 0.1) == pytest.approx([0, 0.1])
    assert spread([1.0, 1.0], 0.1) == pytest.approx([0.9, 1])
    assert spread([0.5] * 4, 0.5) == pytest.approx([0, 0.5, 1, 1.5])


def test_each_name_stands_at_the_end_of_its_line() -> None:
    ax = Figure().subplots()
    ax.plot([1, 2], [1, 10], label="a", color=plot_lines.COLORS[0])
    ax.plot([1, 2], [1, 1000], label="b", color=plot_lines.COLORS[1])
    ax.plot([1, 2], [1, 2])  # without a label
    ax.set_yscale("log")
    ax.set_ylim(1, 1000)
    name_ends(ax)
    found = {text.get_text(): text for text in ax.texts}
    assert set(found) == {"a", "b"}
    assert found["a"].xyann[1] == pytest.approx(1 / 3)
    assert found["b"].xyann[1] == pytest.approx(1)
    assert found["b"].get_color() == plot_lines.COLORS[1]
    assert found["a"].xy == (2, 10)


def test_a_panel_without_lines_has_no_names() -> None:
    ax = Figure().subplots()
    name_ends(ax)
    assert not ax.texts
