"""Plots of cells and answers."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path

import pytest
from lab_oracles import made_cell

pytest.importorskip("matplotlib")

from matplotlib.figure import Figure

from adamas_core.lab import plots
from adamas_core.lab.results import pooled


def test_plots_of_cells(tmp_path: Path) -> None:
    cells = [made_cell(text, 1, i, budget) for i, text in enumerate("ab") for budget in (8, 16)]
    cells += [{**c, "selector": "exact", "name": "exact top-k"} for c in cells]
    changed = {**cells[0], "selector": "l2-rms", "name": "L2"}
    plots.quality([*cells, changed], tmp_path, 64, 8)
    drawn = {"front", "budgets", "heat", "layers", "selectors", "ablations"}
    assert {path.stem for path in tmp_path.iterdir()} == drawn
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in tmp_path.iterdir())


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
