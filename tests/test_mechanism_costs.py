import numpy as np
import pytest

from adamas_core.lab import mechanism_costs as m
from adamas_core.lab.drop_ins import BUILDERS
from adamas_core.lab.mechanism_catalog import ROWS

LENGTHS = 255, 1023, 4095


@pytest.fixture
def short(monkeypatch):
    """Lengths at which all rows can be counted in a few seconds."""
    monkeypatch.setattr(m, "STEPS", LENGTHS)
    monkeypatch.setattr(m, "PREFILLS", (256, 512, 1024))


@pytest.mark.parametrize("name", ROWS)
def test_measured_exponents_are_those_of_the_theory(name, short):
    if name in ("window", "mosa", "lolcats"):
        pytest.skip(
            "at 255 tokens the window, or the budget, is most of them: the command has more"
        )
    for measured, theory in m.exponents(m.costs(name), ROWS[name].theory).values():
        assert np.isnan(measured) or abs(measured - theory) < 0.15


COUNTED = [n for n, row in ROWS.items() if not np.isnan(row.theory.operations(m.SIZES))]


@pytest.mark.parametrize("name", COUNTED)
def test_the_bytes_kept_are_those_of_the_theory(name):
    s = m.SIZES._replace(S=600)
    _, _, kept = m.step_costs(BUILDERS[name](s), s)
    assert kept == 4 * ROWS[name].theory.kept(s)


def test_softmax_attention():
    """The products are 4 H D S operations, and the cache is read once."""
    s = m.SIZES._replace(S=1000)
    operations, read, _ = m.step_costs(BUILDERS["softmax"](s), s)
    assert 4 * s.H * s.D * 1001 < operations < 4.5 * s.H * s.D * 1001
    assert read == 4 * 2 * s.H_kv * s.D * 1001


def test_a_prefill_by_steps_is_the_sum_of_the_steps():
    s = m.SIZES._replace(S=300)
    exact = sum(m.step_costs(BUILDERS["window"](s), s._replace(S=t))[0] for t in range(2, 301))
    assert m.prefill_operations("window", s) == pytest.approx(exact, rel=0.03)


def test_selectors_count_themselves():
    costs = m.costs("streaming-llm")
    assert np.isnan(costs.operations).all()
    assert costs.read[0] == 2 * 2 * 32 * 128 * 2  # 128 rows of K and V in 16 bits, for two heads


def test_exponent():
    assert m.exponent([10, 100, 1000], [3e2, 3e4, 3e6]) == pytest.approx(2)
