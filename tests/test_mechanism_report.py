from __future__ import annotations

import numpy as np
import pytest

from adamas_core.lab import mechanism_report as m
from adamas_core.lab.mechanism_catalog import ROWS
from adamas_core.lab.mechanism_costs import Costs


def test_known():
    assert m.known([1.0, 2.0]) == [1.0, 2.0]
    assert m.known([1.0, float("nan")]) is None


def test_a_row_per_mechanism(monkeypatch):
    some = {name: ROWS[name] for name in ("softmax", "quest")}
    monkeypatch.setattr(m, "ROWS", some)
    monkeypatch.setattr(m, "found", lambda name: 0.5)
    monkeypatch.setattr(m, "costs", COSTS.__getitem__)
    seen = []
    rows = m.counted_rows(lambda text, done, total: seen.append((text, done, total)))
    assert seen == [("MHA, GQA, MQA", 0, 2), ("Quest, 128 tokens", 1, 2)]
    assert rows[0]["exponents"]["operations"][0] == pytest.approx(1)
    assert rows[1]["operations"] is None
    assert rows[1]["exponents"]["operations"] is None
    assert rows[0]["found"] == 0.5
    assert set(m.setting()) == {"steps", "prefills", "sizes", "needles"}


S = np.array(m.STEPS, float)
NAN = [float("nan")]
COSTS = {
    "softmax": Costs(list(S), list(S), list(S), [1.0, 4.0, 16.0, 64.0]),
    "quest": Costs(7 * NAN, list(S), list(S), 4 * NAN),
}
