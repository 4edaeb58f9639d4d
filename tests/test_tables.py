"""Tables on the terminal."""

from __future__ import annotations

import pytest
from lab_oracles import made_cell

from adamas_core.cli import tables
from adamas_core.lab.results import pooled


def test_the_table_of_texts(capsys: pytest.CaptureFixture[str]) -> None:
    cells = [made_cell("a", 0.25, 1), made_cell("b", 0.75, 2), made_cell("a", 9, 1, budget=16)]
    tables.quality(pooled(cells), 10, cells)
    out = capsys.readouterr().out
    assert "Context 64, budget 8; perplexity of full attention: a 4.00, b 4.00" in out
    (line,) = (line for line in out.splitlines() if "Quest" in line)
    assert "0.5000 ± 0.0000" in line


def test_a_form_has_no_figures_of_a_choice(capsys: pytest.CaptureFixture[str]) -> None:
    cells = [made_cell("a", 0.25, 1, form=True)]
    (row,) = pooled(cells)
    texts = list(tables.quality_cells(row))
    told = dict(zip(tables.COLUMNS, texts[1:], strict=True))
    absent = ("mass", "worst tenth", "recall", "CPU ms to choose")
    assert [column for column, text in told.items() if text == "-"] == list(absent)
    tables.quality([row], 8, cells)
    assert "tail of 64" in capsys.readouterr().out


def test_the_table_of_answers(capsys: pytest.CaptureFixture[str]) -> None:
    row = {"length": 500, "asked": 4, "depth": None}
    full = {**row, "selector": "full", "name": "full", "budget": None}
    rows = [
        {**full, "task": "passkey", "right": 4, "solved": True},
        {**full, "task": "word counts", "right": 1, "solved": False},
        {
            **row,
            "selector": "quest",
            "name": "Quest",
            "budget": 8,
            "task": "passkey",
            "right": 3,
            "solved": True,
        },
    ]
    tables.answers(rows)
    out = capsys.readouterr().out
    assert "passkey, 500" in out
    (line,) = (line for line in out.splitlines() if "Quest" in line)
    assert "0.75" in line
    assert "left out: word counts, 500; full attention gets 0.25 right" in out
