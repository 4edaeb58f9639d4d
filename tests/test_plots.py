"""Plots of cells and answers."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from lab_oracles import made_cell

pytest.importorskip("matplotlib")

from matplotlib.figure import Figure

from adamas_core.lab import plots
from adamas_core.lab.results import pooled
from adamas_core.lab.selectors import SELECTORS


def test_plots_of_cells(tmp_path: Path) -> None:
    cells = [made_cell(text, 1, i, budget) for i, text in enumerate("ab") for budget in (8, 16)]
    cells += [{**c, "selector": "exact", "name": "exact top-k"} for c in cells]
    changed = {**cells[0], "selector": "l2-rms", "name": "L2"}
    plots.quality([*cells, changed], tmp_path, 64, 8)
    drawn = {"front", "budgets", "heat", "layers", "selectors", "ablations"}
    assert {path.stem for path in tmp_path.iterdir()} == drawn
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in tmp_path.iterdir())


def test_plots_of_forms_alone(tmp_path: Path) -> None:
    """They have no mass, so there is no plot of it."""
    cells = [made_cell("a", 1, i, budget, form=True) for i, budget in enumerate((8, 16))]
    plots.quality(cells, tmp_path, 64, 8)
    assert {path.stem for path in tmp_path.iterdir()} == {"front", "budgets", "selectors"}


def lines(figure: Figure) -> list[set[str]]:
    """The names of the lines of each panel."""
    return [
        {str(line.get_label()) for line in ax.get_lines() if str(line.get_label())[0] != "_"}
        for ax in figure.axes
    ]


def test_a_panel_has_the_selectors_that_have_its_figure() -> None:
    cells = [made_cell("a", 1, i, budget) for i, budget in enumerate((8, 16))]
    cells += [made_cell("a", 1, i, budget, form=True) for i, budget in enumerate((8, 16))]
    both = {"Quest", "tail of 64"}
    assert lines(plots.budgets(pooled(cells))) == [both] * 5 + [{"Quest"}]
    older = [{**c, "output_error_worst_tenth": None} for c in cells[:2]]
    assert lines(plots.budgets(pooled([*older, *cells[2:]]))) == [
        *([both] * 4),
        {"tail of 64"},
        {"Quest"},
    ]
    assert lines(plots.budgets(pooled(older))) == [{"Quest"}] * 5 + [set()]


def test_the_front_has_all_budgets_and_the_bytes_kept_at_one() -> None:
    cells = [made_cell("a", kl, 1, budget) for kl, budget in ((1, 8), (0.5, 16))]
    read, kept = plots.front(pooled(cells), 16).axes
    (line,) = read.get_lines()
    assert [tuple(xy) for xy in np.asarray(line.get_xydata())] == [(1, 1), (1, 0.5)]
    (point,) = kept.get_lines()
    assert [tuple(xy) for xy in np.asarray(point.get_xydata())] == [(7, 0.5)]


def test_a_plot_has_at_most_eight_lines() -> None:
    cells = [{**made_cell("a", 1, 1), "selector": key} for key in SELECTORS]
    shown = {c["selector"] for c in plots.only(cells, plots.OF_FRONT)}
    assert shown == set(plots.OF_FRONT)
    assert len(shown) == 8
    assert {*plots.OF_FRONT, *plots.OF_SWEEPS, *plots.OF_LAYERS} <= set(SELECTORS)


@pytest.mark.parametrize("plot", [plots.heat, plots.layers])
def test_few_layers_and_heads_have_whole_ticks(plot: Callable[..., Figure]) -> None:
    name = "relative_mass_by_layer_and_head"
    row = {**pooled([made_cell("a", 1, 1)])[0], name: [[0.5, 0.25], [1.0, 0.75], [0.5, 0.5]]}
    panel = plot([row]).axes[0]
    axes = [panel.xaxis, panel.yaxis] if plot is plots.heat else [panel.xaxis]
    ticks = [float(tick) for axis in axes for tick in axis.get_ticklocs()]
    assert ticks
    assert all(tick.is_integer() for tick in ticks)


def test_the_plot_of_answers(tmp_path: Path) -> None:
    plots.tasks([], tmp_path)
    assert not list(tmp_path.iterdir())
    row = {"task": "passkey", "length": 500, "name": "Quest", "budget": 8, "exact": 0.5}
    plots.tasks([{**row, "depth": 0.0}, {**row, "depth": 1.0}], tmp_path)
    assert (tmp_path / "passkey.png").read_bytes().startswith(b"\x89PNG")


def test_a_failed_plot_names_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk gives an error without a name."""

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(plots.Figure, "savefig", full)
    row = {"task": "passkey", "length": 5, "name": "Quest", "budget": 8, "exact": 0.5, "depth": 0.0}
    with pytest.raises(OSError, match=r"No space left.*passkey\.png'$"):
        plots.tasks([row], tmp_path)
