"""Coded values: codes as of keys, sums, and operations that end whole or are undone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from oracles import assert_same_bits

from adamas_core import reference, value_store
from adamas_core.code_store import Undo
from adamas_core.lengths import Lengths
from adamas_core.reference.values import bases_of, total_of
from adamas_core.value_store import CodedValues


def normal(*shape: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32) + np.float32(1)


def coded(v: NDArray[np.float32], length: Any) -> CodedValues:
    return value_store.encoded(v, Lengths.of(length, len(v)), "cpu")


def same(got: CodedValues, expected: CodedValues) -> None:
    for x, y in zip(got.record(), expected.record(), strict=True):
        assert_same_bits(np.ascontiguousarray(x), np.ascontiguousarray(y))
    assert got.nbytes() == expected.nbytes()


def test_the_record_is_the_references() -> None:
    v, length = normal(2, 2, 200, 48), np.array([130, 200])
    state = coded(v, length)
    record, bases = state.record(), bases_of(v, length)
    codes, scales = np.zeros_like(record.codes), np.zeros_like(record.scales)
    reference.encode_values(v, codes, scales, bases, 0, length)
    assert_same_bits(record.codes, codes)
    assert_same_bits(record.scales, scales)
    assert_same_bits(record.bases, bases)
    assert_same_bits(record.total, total_of(v, length))
    assert state.nbytes() == codes.nbytes + scales.nbytes + 2 * 2 * (2 + 2) * 48 * 4


@pytest.mark.parametrize("kept", [[130, 200], [129, 64], [5, 199], [0, 128], [70, 0]])
def test_a_cut_equals_values_that_never_saw_more(kept: list[int]) -> None:
    v = normal(2, 2, 200, 48)
    state = coded(v, np.array([130, 200]))
    cut = value_store.cut(state, state.lengths.cut(np.array(kept)), v, lambda undo: None)
    same(cut, coded(v, np.array(kept)))


@pytest.mark.parametrize("cut", [False, True])
def test_an_operation_that_does_not_end_is_undone(cut: bool) -> None:
    v = normal(2, 2, 200, 48)
    state = coded(v[:, :, :180], 180)
    undos: list[Undo] = []
    if cut:
        value_store.cut(state, state.lengths.cut(70), v, undos.append)
    else:
        new = state.lengths.plus(12)
        value_store.append(state, v[:, :, 180:192], 12, new, undos.append)
    assert not np.array_equal(state.codes, coded(v[:, :, :180], 180).codes)
    for undo in undos:
        undo.restore()
    same(state, coded(v[:, :, :180], 180))


def test_sequences_are_taken() -> None:
    v = normal(2, 2, 100, 48)
    taken = value_store.take(coded(v, 100), np.array([1, -1, 1]))
    same(taken, coded(v[[1, 0, 1]], np.array([100, 0, 100])))
