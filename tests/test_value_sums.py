"""Sums of values: the bits of total_of, however tokens came and whatever was dropped again."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from oracles import assert_same_bits
from strategies import DTYPES

from adamas_core import value_sums
from adamas_core.lengths import Lengths
from adamas_core.reference.values import bases_of, total_of
from adamas_core.value_sums import Sums


@pytest.fixture(scope="module", autouse=True)
def near_marks() -> Iterator[None]:
    """A mark after every second tile, so that short inputs have several."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(value_sums, "STRIDE", 128)
        yield


def drawn(B: int, S: int, dtype: np.dtype[Any] = DTYPES[2], seed: int = 0) -> NDArray[Any]:
    rng = np.random.default_rng(seed)
    return (rng.standard_normal((B, 2, S, 3)) * np.exp2(rng.integers(-8, 8, S))[:, None]).astype(
        dtype
    )


def fresh(v: NDArray[Any], lengths: Lengths) -> Sums:
    B, H_kv, _, D = v.shape
    return value_sums.append(
        value_sums.empty(B, H_kv, D, "cpu"), v, Lengths.of(0, B), lengths, "cpu"
    )


def same(got: Sums, expected: Sums) -> None:
    for x, y in zip(got, expected, strict=True):
        assert_same_bits(np.ascontiguousarray(x), np.ascontiguousarray(y))


steps = st.lists(
    st.tuples(st.booleans(), st.lists(st.integers(0, 300), min_size=2, max_size=2)),
    min_size=1,
    max_size=5,
)


@given(steps=steps, ragged=st.booleans(), dtype=st.sampled_from(DTYPES))
def test_grown_and_cut_sums_are_fresh_ones(
    steps: list[tuple[bool, list[int]]], ragged: bool, dtype: np.dtype[Any]
) -> None:
    """Each step appends tokens or drops some; earlier sums stay as they were."""
    held = np.zeros((2, 2, 0, 3), dtype)  # the values in the slots, as a cache holds them
    lengths = Lengths.of(np.zeros(2, int) if ragged else 0, 2)
    sums = value_sums.empty(2, 2, 3, "cpu")
    for seed, (more, counts) in enumerate(steps):
        before, old = Sums(*(x.copy() for x in sums)), sums
        each = np.array(counts if ragged else [counts[0]] * 2)
        if more:
            new = drawn(2, int(each.max()), dtype, seed)
            after = lengths.plus(each if ragged else int(each[0]))
            sums = value_sums.append(sums, new, lengths, after, "cpu")
            grown = np.zeros((2, 2, after.longest, 3), dtype)
            for b in range(2):
                n = lengths.each[b]
                grown[b, :, :n] = held[b, :, :n]
                grown[b, :, n : after.each[b]] = new[b, :, : each[b]]
            held = grown
        else:
            kept = np.maximum(lengths.each - each, 0)
            after = lengths.cut(kept if ragged else int(kept[0]))
            sums = value_sums.cut(sums, held, lengths, after, "cpu")
        same(old, before)
        lengths = after
        same(sums, fresh(held, lengths))
        assert_same_bits(sums.total(), total_of(held, lengths.each))
        assert_same_bits(sums.bases, bases_of(held, lengths.each))


def test_sequences_are_taken() -> None:
    v = drawn(2, 300)
    lengths = Lengths.of(np.array([100, 300]), 2)
    order = np.array([0, -1, 0])
    taken = value_sums.take(fresh(v, lengths), order, lengths.take(order), "cpu")
    again = v[[0, 0, 0]]
    same(taken, fresh(again, Lengths.of(np.array([100, 0, 100]), 3)))


def test_a_cut_reads_the_values_since_a_mark() -> None:
    v = drawn(1, 400)
    whole = fresh(v, Lengths.of(400, 1))
    v[:, :, :256] = np.nan
    cut = value_sums.cut(whole, v, Lengths.of(400, 1), Lengths.of(300, 1), "cpu")
    assert_same_bits(cut.total(), total_of(drawn(1, 400), 300))


def test_bytes() -> None:
    assert fresh(drawn(2, 300), Lengths.of(300, 2)).nbytes() == (1 + 1 + 2 + 2) * 2 * 2 * 3 * 4


@pytest.mark.filterwarnings("error")
def test_large_values_give_no_warning() -> None:
    v = np.full((1, 1, 71, 2), 3e38, np.float32)
    assert np.isinf(fresh(v, Lengths.of(71, 1)).total()).all()
