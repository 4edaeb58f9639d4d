"""Which tokens a query sees, and which of them are always taken."""

from __future__ import annotations

from itertools import product

import numba
import numpy as np

from adamas_core.cpu._array import address_of
from adamas_core.cpu._record import Record
from adamas_core.cpu.kernels._memory import reader
from adamas_core.cpu.kernels._visible import forced_tokens, visible_tokens
from adamas_core.reference.score import visible_tokens as visible_of_reference

Options = Record("sinks", "recent")
options_at = reader(Options)


@numba.njit
def _forced(visible, budget, at):
    return forced_tokens(visible, budget, options_at(at))


def test_forced_tokens_are_disjoint_and_fit_the_budget():
    for visible, budget, sinks, recent in product(range(7), range(1, 7), range(7), range(7)):
        options = Options(sinks=sinks, recent=recent)
        first, sinks_taken, end, recent_taken = _forced(visible, budget, address_of(options))
        assert 0 <= first <= end <= visible
        assert end == visible - min(recent, visible)
        assert first == min(sinks, end)
        assert sinks_taken + recent_taken == min(budget, first + visible - end)
        assert recent_taken == min(budget, visible - end)  # the newest are taken first


def test_visible_tokens_are_those_of_the_reference():
    for length, L in product(range(6), range(1, 5)):
        expected = visible_of_reference(np.array([length]), L)[0]
        assert [visible_tokens.py_func(length, L, l) for l in range(L)] == list(expected)
