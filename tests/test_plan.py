"""The arguments of register."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("torch", reason='needs the extra "transformers"')
pytest.importorskip("transformers", reason='needs the extra "transformers"')

from adamas_core import PAPER, Selection
from adamas_core.transformers.plan import Plan

pytestmark = pytest.mark.peers


@pytest.mark.parametrize(
    "selection, thresholds, tail",
    [
        (Selection(), None, 256),
        (Selection(tail=0), None, 0),
        (Selection(tail=7), None, 7),
        (Selection(group=True), None, 0),
        (Selection(), PAPER, 0),
        (Selection(metric="manhattan"), [-1, 0, 1], 0),
    ],
)
def test_the_tail(selection, thresholds, tail):
    plan = Plan.of(128, selection, thresholds, 0)
    assert plan.selection.tail == tail
    assert plan.bits == (3 if tail else 2)
    assert plan.tokens == 1
    assert (plan.thresholds is None) == (thresholds is None)


def test_numbers():
    plan = Plan.of(np.int64(9), Selection(), None, np.int64(4))
    assert (plan.budget, plan.tokens) == (9, 5)
    assert type(plan.budget) is int


@pytest.mark.parametrize(
    "arguments, error, message",
    [
        ((0, Selection(), None, 0), ValueError, "register: budget=0"),
        ((1.5, Selection(), None, 0), TypeError, "register: budget=1.5"),
        ((3, Selection(sinks=2, recent=2), None, 0), ValueError, "register: sinks=2 and recent=2"),
        ((3, "weighted", None, 0), TypeError, "register: selection is of type str"),
        ((3, Selection(), None, -1), ValueError, "register: draft=-1"),
        ((3, Selection(), [0, 1], 0), ValueError, "register: thresholds"),
        ((3, Selection(), [2, 1, 0], 0), ValueError, "register: thresholds"),
        ((3, Selection(metric="manhattan"), None, 0), ValueError, "'manhattan' without thresholds"),
        ((3, Selection(tail=9), PAPER, 0), ValueError, "register: tail=9 with plain codes"),
    ],
)
def test_what_is_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        Plan.of(*arguments)
