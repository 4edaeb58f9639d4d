from __future__ import annotations

import pytest

from adamas_core.cli import mechanism_tables as m

PAIR = [1.0, 0.98]
ROW = {
    "mechanism": "x",
    "name": "a mechanism",
    "paper": "1234.56789",
    "order": "S, 1, S^2",
    "operations": [10.0, 2000.0],
    "read": [1.0, 2048.0],
    "kept": [1.0, 3.0 * 2**20],
    "prefill": [1.0, 3e9],
    "exponents": {"operations": PAIR, "read": [-0.001, 0.0], "kept": PAIR, "prefill": PAIR},
    "found": 0.5,
    "models": "none",
}


def test_cells_of_a_row():
    assert m.cost_cells(ROW, {"x": 0.25}) == (
        "a mechanism (1234.56789)",
        "S, 1, S^2",
        "2e+03 (1.00, 0.98)",
        "2.0 KiB (0.00, 0.00)",
        "3.0 MiB (1.00, 0.98)",
        "3e+09 (1.00, 0.98)",
        "0.50",
        "0.250",
        "none",
    )


def test_what_was_not_counted():
    exponents = {**ROW["exponents"], "operations": None}
    cells = m.cost_cells({**ROW, "operations": None, "exponents": exponents}, {})
    assert cells[2] == m.NONE
    assert cells[7] == m.NONE


@pytest.mark.parametrize(
    ("value", "text"), [(None, "-"), (True, "yes"), (False, "no"), (0.12345, "0.123")]
)
def test_figures(value, text):
    assert m.figure_cell(value) == text


def test_all_tables(capsys):
    fits = [{"name": "a fit", "kl": 0.5, "error": 0.25}]
    masses = [{"name": "an indexer", "kl": 0.5, "mass": 0.75, "shared": True}]
    figures = {"mass": 0.9, "relative": 0.98, "error_exact": 0.1, "error_codes": 0.2}
    figures |= {"refined": 0.99, "error_refined": 0.11}
    latent = [{"layer": 7, "budget": 128, "tokens": 512, **figures}]
    report = {
        "rows": [ROW],
        "sizes": {"H": 2, "H_kv": 1, "D": 32},
        "steps": [1023, 65535],
        "prefills": [2048],
        "context": 512,
        "errors": {"x": 0.25},
        "indexer": masses,
        "lolcats": fits,
        "latent": latent,
    }
    m.show_all(report)
    printed = capsys.readouterr().out
    for text in ("a mechanism", "64K", "a fit", "an indexer", "0.980", "D_k = 576"):
        assert text in printed
    m.show_all({**report, "latent": []})
    assert "D_k = 576" not in capsys.readouterr().out
