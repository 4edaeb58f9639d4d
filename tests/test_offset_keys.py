"""Synthetic keys with an offset: where it lies, and the mass that is measured on them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from adamas_core.lab import offset_keys
from adamas_core.lab.offset_keys import measure, sample
from adamas_core.lab.variants import variants


@pytest.mark.parametrize("pairs", offset_keys.PAIRS)
def test_the_offset_has_its_norm(pairs: str) -> None:
    """The difference to keys of the same seed without it, which RoPE turns but does not stretch."""
    with_it, without = sample(22, pairs, 3), sample(0, pairs, 3)
    offset = (with_it.k - without.k)[0]  # (S, D)
    np.testing.assert_allclose(np.linalg.norm(offset, axis=1), 22, rtol=1e-5)
    np.testing.assert_array_equal(with_it.q, without.q)
    turn = np.linalg.norm(offset[0] - offset[-1])
    assert (turn < 22 / 2) == (pairs == "slow")  # by less than one radian, or anywhere


def test_a_form_has_no_mass() -> None:
    with pytest.raises(ValueError, match="tail-64 is a form of attention, and chooses no tokens"):
        measure(variants(["adamas", "tail-64"]), [16], [0], lambda *_: None)


@pytest.mark.parametrize("norm", [np.nan, np.inf, -1])
def test_a_norm_is_a_finite_number(norm: float) -> None:
    with pytest.raises(ValueError, match=f"sample: norm={norm}; expected a finite number from 0"):
        sample(norm, "all", 0)


def test_mass(monkeypatch: Any) -> None:
    """The exact top-k has all of its own mass. Plain codes lose with an offset in slow pairs."""
    monkeypatch.setattr(offset_keys, "NORMS", (0, 100))
    monkeypatch.setattr(offset_keys, "S", 1024)
    seen: list[str] = []
    rows = measure(
        variants(["exact", "adamas-plain", "adamas"]),
        [16, 32],
        [0],
        lambda text, *_: seen.append(text),
    )
    assert len(rows) == 2 * 2 * 2 * 3
    assert [row["budget"] for row in rows[:6]] == [16] * 3 + [32] * 3
    rows = [row for row in rows if row["budget"] == 32]
    assert len(seen) == 4
    mass = {(row["pairs"], row["norm"], row["selector"]): row["mass"] for row in rows}
    for pairs in offset_keys.PAIRS:
        for norm in (0, 100):
            assert mass[pairs, norm, "exact"] == pytest.approx(1, abs=1e-6)
            assert mass[pairs, norm, "adamas"] > 0.9
    assert mass["slow", 100, "adamas-plain"] < 0.5 < mass["slow", 0, "adamas-plain"]
