"""Lengths: one number or one per sequence, and how they change."""

from __future__ import annotations

import numpy as np

from adamas_core.lengths import Lengths


def test_one_number_stays_one() -> None:
    lengths = Lengths.of(5, 3)
    assert lengths.each.tolist() == [5, 5, 5]
    assert (lengths.given(), lengths.longest, lengths.shortest) == (5, 5, 5)
    assert lengths.plus(2).given() == 7
    assert lengths.plus(2).cut(6).given() == 6
    assert lengths.given() == 5  # an object never changes


def test_a_length_per_sequence_makes_them_ragged() -> None:
    lengths = Lengths.of(5, 3).plus(np.array([0, 1, 9]))
    given = lengths.given()
    assert isinstance(given, np.ndarray)
    assert given.tolist() == [5, 6, 14]
    assert (lengths.longest, lengths.shortest) == (14, 5)
    given[0] = 99  # a copy
    assert lengths.each.tolist() == [5, 6, 14]
    assert lengths.plus(1).ragged
    assert lengths.cut(6).each.tolist() == [5, 6, 6]


def test_no_sequence() -> None:
    lengths = Lengths.of(0, 0)
    assert (lengths.given(), lengths.longest, lengths.shortest) == (0, 0, 0)
