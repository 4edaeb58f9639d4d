"""Records are filled by name."""

from __future__ import annotations

import numba
import numpy as np
import pytest

from adamas_core.cpu._array import address_of
from adamas_core.cpu._record import Record
from adamas_core.cpu.kernels._memory import reader

Sizes = Record("a", "b", "share", "c", floats=("share",))
sizes_at = reader(Sizes)


@numba.njit
def _read(at):  # type: ignore[no-untyped-def]
    record = sizes_at(at)
    return record.a, record.b, record.share, record.c


def test_fields_by_name_in_any_order() -> None:
    record = Sizes({"c": 3, "b": -2}, a=1, share=0.25)
    assert record.shape == (1,)
    assert record[0].tolist() == (1, -2, 0.25, 3)
    assert _read(address_of(record)) == (1, -2, 0.25, 3)


def test_a_missing_field_is_0() -> None:
    assert Sizes()[0].tolist() == (0, 0, 0.0, 0)
    assert Sizes({"b": 2**62})[0].tolist() == (0, 2**62, 0.0, 0)


def test_a_later_value_wins() -> None:
    assert Sizes({"a": 1}, {"a": 2}, a=3)["a"][0] == 3


@pytest.mark.parametrize("unknown", ["d", "A", "shares"])
def test_an_unknown_field_is_an_error(unknown: str) -> None:
    with pytest.raises(TypeError, match=rf"unknown fields {unknown}; expected a, b, share, c"):
        Sizes({"a": 1}, **{unknown: 1})
    with pytest.raises(TypeError, match=rf"unknown fields {unknown}; expected a, b, share, c"):
        Sizes({unknown: 1}, a=1)


def test_records_do_not_share_memory() -> None:
    first, second = Sizes(a=1), Sizes(a=2)
    first["b"] = 5
    assert second["b"][0] == 0
    assert Sizes()["b"][0] == 0


def test_a_kind_of_record_names_each_field_once() -> None:
    with pytest.raises(TypeError, match="each name once"):
        Record("a", "b", "a")
    with pytest.raises(TypeError, match="each name once"):
        Record("a", floats=("scale",))


def test_fields_that_kernels_fill_come_last_and_cannot_be_given() -> None:
    kind = Record("a", "share", floats=("share",), kernels=("own",))
    assert kind(a=1, share=0.5)[0].tolist() == (1, 0.5, 0)
    assert kind.offset("own") == 16
    with pytest.raises(TypeError, match="unknown fields own; expected a, share"):
        kind(own=1)
    with pytest.raises(TypeError, match="each name once"):
        Record("a", kernels=("a",))


def test_numpy_integers_and_booleans_are_numbers() -> None:
    assert Sizes(a=np.int64(7), b=True)[0].tolist() == (7, 1, 0.0, 0)
