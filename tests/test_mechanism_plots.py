from __future__ import annotations

import pytest

STEPS = [1023, 2047, 4095]


def test_a_line_per_mechanism_that_was_counted(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    from adamas_core.lab import mechanism_plots as m

    drawn = []
    monkeypatch.setattr(m, "save", lambda figure, path: drawn.append((figure, path)))
    costs = {"read": [1.0, 2.0, 4.0], "kept": [1.0, 1.0, 1.0]}
    rows = [
        {"mechanism": "softmax", "name": "MHA", "operations": [3.0, 6.0, 12.0], **costs},
        {"mechanism": "adamas", "name": "codes", "operations": None, **costs},
        {"mechanism": "linear", "name": "not shown", "operations": [1.0, 1.0, 1.0], **costs},
    ]
    m.costs({"rows": rows, "steps": STEPS}, tmp_path)
    ((figure, path),) = drawn
    assert path == tmp_path / "costs.png"
    lines = [[line.get_label() for line in ax.get_lines()] for ax in figure.axes]
    assert lines == [["MHA"], ["MHA", "codes"], ["MHA", "codes"]]
    assert figure.axes[0].get_lines()[0].get_xydata().tolist() == [[1023, 3], [2047, 6], [4095, 12]]
    assert len(m.SHOWN) <= 8
