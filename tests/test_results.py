"""Cells from figures, and rows over texts."""

from __future__ import annotations

import math

import numpy as np
import pytest
from lab_oracles import made_cell

from adamas_core.lab import results
from adamas_core.lab.metrics import Captured, NextToken


def test_a_cell_and_the_row_over_texts() -> None:
    a, b = made_cell("a", 0.25, 1), made_cell("b", 0.75, 2)
    assert a["perplexity_full"] == 4
    assert a["kl"] == [0.25, 0]
    assert a["ms_to_choose"] == pytest.approx(500 / 32, rel=1e-4)
    rng = np.random.default_rng(1)
    for drawn in (32, 32, (2, 3, 32)):  # what made_cell drew before the relative mass
        rng.random(drawn, np.float32 if drawn == (2, 3, 32) else np.float64)
    worst = np.sort(rng.random((2, 3, 32), np.float32).reshape(-1))[:19]
    assert a["relative_mass_worst_tenth"] == pytest.approx(worst.mean(), rel=1e-4)
    assert a["relative_mass_tenth_percentile"] == pytest.approx(worst[-1], rel=1e-4)
    other = made_cell("a", 0.5, 1, budget=16)
    first, second = results.pooled([a, other, b])
    assert (first["budget"], second["budget"]) == (8, 16)
    assert first["texts"] == ["a", "b"]
    assert first["kl"] == [0.5, 0]
    assert first["mass"][0] == pytest.approx((a["mass"][0] + b["mass"][0]) / 2, rel=1e-4)
    halves = math.hypot(a["mass"][1], b["mass"][1]) / 2
    assert first["mass"][1] == pytest.approx(halves, rel=1e-4)
    gain = (a["loss_gain"][0] + b["loss_gain"][0]) / 2
    assert first["perplexity_ratio"][0] == pytest.approx(math.exp(gain), rel=1e-4)
    assert np.shape(first["relative_mass_by_layer_and_head"]) == (2, 3)


def test_the_worst_tenth_of_the_error_is_the_largest() -> None:
    error = np.random.default_rng(4).permutation(600).reshape(3, 4, 50).astype(np.float32)
    zeros = NextToken(np.zeros(50), np.zeros(50), np.ones(50, bool))
    found = results.cell(zeros, zeros, Captured(error, None), {})
    assert found["output_error_worst_tenth"] == np.arange(540, 600).mean()
    assert found["output_error"][0] == np.arange(600).mean()
    assert found["output_error_by_layer_and_head"][2][1] == pytest.approx(error[2, 1].mean())


def test_a_form_has_no_figures_of_a_choice() -> None:
    a, b = made_cell("a", 0.25, 1, form=True), made_cell("b", 0.75, 2, form=True)
    (row,) = results.pooled([a, b])
    for name in results.OF_CHOICES:
        assert a[name] is None
        assert row[name] is None
    assert row["kl"] == [0.5, 0]
    assert np.shape(row["output_error_by_layer_and_head"]) == (2, 3)


def test_an_older_record_lacks_newer_figures() -> None:
    a, b = made_cell("a", 0.25, 1), made_cell("b", 0.75, 2)
    del a["output_error_worst_tenth"], a["output_error_by_layer_and_head"], a["bytes_of_rows"]
    (row,) = results.pooled([a, b])
    assert row["output_error_worst_tenth"] is None
    assert row["output_error_by_layer_and_head"] is None
    assert row["bytes_of_rows"] is None
    assert row["mass"] is not None


def test_common_texts() -> None:
    a, b, other = made_cell("a", 1, 1), made_cell("b", 1, 2), made_cell("b", 1, 3, budget=16)
    assert results.on_common_texts([a, b, other]) == [b, other]
    assert results.on_common_texts([a, b]) == [a, b]
    assert results.on_common_texts([a, other]) == [a, other]


def test_selectors_of_an_older_record_come_last() -> None:
    """A folder may hold results of selectors that have another name today."""
    old = {**made_cell("a", 1, 1), "selector": "adamas-mean", "name": "an older name"}
    rows = results.pooled([old, made_cell("a", 1, 2)])
    assert [row["selector"] for row in rows] == ["quest", "adamas-mean"]
