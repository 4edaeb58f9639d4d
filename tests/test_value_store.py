"""Coded values: codes as of keys, sums, and operations that end whole or are undone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from oracles import assert_same_bits

from adamas_core import value_store
from adamas_core.code_store import Kind, Undo
from adamas_core.codes import encoded
from adamas_core.lengths import Lengths
from adamas_core.reference.tail import total_of
from adamas_core.value_store import CodedValues


def normal(*shape: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32) + np.float32(1)


def coded(v: NDArray[np.float32], length: Any) -> CodedValues:
    return value_store.encoded(v, Lengths.of(length, len(v)), "cpu")


def same(got: CodedValues, expected: CodedValues) -> None:
    a, b = got.record(), expected.record()
    assert_same_bits(np.ascontiguousarray(a.planes), np.ascontiguousarray(b.planes))
    for x, y in zip(a.centers[:2], b.centers[:2], strict=True):
        assert_same_bits(np.ascontiguousarray(x), np.ascontiguousarray(y))
    for i, n in enumerate(got.codes.lengths.each):  # only these rows of the open tile are in use
        assert_same_bits(*(x.centers.open_tile[i, :, : n % 64].copy() for x in (a, b)))
    assert_same_bits(a.total, b.total)
    assert got.nbytes() == expected.nbytes()


def test_the_codes_are_those_of_keys_and_the_total_is_the_references() -> None:
    v, length = normal(2, 2, 200, 48), np.array([130, 200])
    state = coded(v, length)
    keys = encoded(v, Lengths.of(length, 2), None, "cpu", Kind(True))
    record = state.record()
    assert_same_bits(np.ascontiguousarray(record.planes), keys.used())
    assert record.planes.strides[4:] == (8 * 2 * 8, 8, 2 * 8)  # the words of a token side by side
    for x, y in zip(record.centers, keys.used_centers() or (), strict=True):
        assert_same_bits(x, y)
    assert_same_bits(record.total, total_of(v, length))
    assert state.nbytes() == keys.nbytes() + 2 * 2 * 2 * 48 * 4


@pytest.mark.parametrize("kept", [[130, 200], [129, 64], [5, 199], [0, 128], [70, 0]])
def test_a_cut_equals_values_that_never_saw_more(kept: list[int]) -> None:
    v = normal(2, 2, 200, 48)
    state = coded(v, np.array([130, 200]))
    cut = value_store.cut(state, state.codes.lengths.cut(np.array(kept)), v, lambda undo: None)
    same(cut, coded(v, np.array(kept)))


@pytest.mark.parametrize("cut", [False, True])
def test_an_operation_that_does_not_end_is_undone(cut: bool) -> None:
    v = normal(2, 2, 200, 48)
    state = coded(v[:, :, :180], 180)
    undos: list[Undo] = []
    if cut:
        value_store.cut(state, state.codes.lengths.cut(70), v, undos.append)
    else:
        new = state.codes.lengths.plus(12)  # a tile becomes full
        value_store.append(state, v[:, :, 180:192], 12, new, undos.append)
    assert not np.array_equal(state.record().planes, coded(v[:, :, :180], 180).record().planes)
    for undo in undos:
        undo.restore()
    same(state, coded(v[:, :, :180], 180))


def test_sequences_are_taken() -> None:
    v = normal(2, 2, 100, 48)
    taken = value_store.take(coded(v, 100), np.array([1, -1, 1]))
    same(taken, coded(v[[1, 0, 1]], np.array([100, 0, 100])))
