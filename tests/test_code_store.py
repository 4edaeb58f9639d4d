"""Codes in arrays with free slots: operations end whole or are undone, and free slots are 0."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from numpy.typing import NDArray

from adamas_core import code_store
from adamas_core.code_store import Coded, Kind, Undo
from adamas_core.codes import encoded
from adamas_core.lengths import Lengths

THRESHOLDS = np.array([-1, 0, 1], np.float32)


def normal(*shape: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32) + np.float32(1)


KINDS = [Kind(False), Kind(True), Kind(True, fine=True)]


def coded(k: NDArray[np.float32], length: Any, kind: Kind) -> Coded:
    t = None if kind.centered else THRESHOLDS
    return encoded(k, Lengths.of(length, len(k)), t, "cpu", kind)


def parts(state: Coded) -> tuple[Any, ...]:
    return (state.used(), *(state.used_centers() or ()), *(state.used_fine() or ()))


def same(got: Coded, expected: Coded) -> None:
    assert_array_equal(got.used(), expected.used())
    assert_array_equal(got.lengths.each, expected.lengths.each)
    for x, y in zip(parts(got), parts(expected), strict=True):
        if x.dtype != np.float32:
            assert_array_equal(x, y)
    if got.centers is not None and expected.centers is not None:
        for b, n in enumerate(got.lengths.each):  # only these rows of the open tile are in use
            tiles = [c.open_tile[b, :, : n % 64] for c in (got.centers, expected.centers)]
            assert_array_equal(*tiles)


def copied(state: Coded) -> Coded:
    """The same codes in arrays of their own."""
    return code_store.take(state, np.arange(len(state.lengths.each)))


@pytest.mark.parametrize("kind", KINDS)
def test_an_append_that_does_not_end_is_undone(kind: Kind) -> None:
    """All that the kernel wrote is put back, also the codes of a tile that became full."""
    k = normal(2, 2, 300, 48)
    state = code_store.reserve(coded(k[:, :, :100], np.array([60, 100]), kind), 300)
    before, undos = copied(state), []
    code_store.append(state, k[:, :, 100:220], 120, state.lengths.plus(120), undos.append)
    same_bits = all(np.array_equal(x, y) for x, y in zip(parts(state), parts(before), strict=True))
    assert not same_bits  # it has been written over
    (undo,) = undos
    undo.restore()
    same(state, before)
    assert not state.planes[:, :, :, 2:].any()


@pytest.mark.parametrize("kind", KINDS)
def test_a_cut_that_does_not_end_is_undone(kind: Kind) -> None:
    k = normal(2, 2, 200, 48)
    state = coded(k, np.array([130, 200]), kind)
    before, undos = copied(state), []
    code_store.cut(state, state.lengths.cut(np.array([70, 90])), k, undos.append)
    undos[0].restore()
    same(state, before)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("kept", [[130, 200], [129, 64], [5, 199], [0, 128], [70, 0]])
def test_a_cut_equals_codes_that_never_saw_more(kind: Kind, kept: list[int]) -> None:
    k = normal(2, 2, 200, 48)
    state = coded(k, np.array([130, 200]), kind)
    cut = code_store.cut(state, state.lengths.cut(np.array(kept)), k, lambda undo: None)
    same(cut, coded(k, np.array(kept), kind))


def test_padding_leaves_no_codes() -> None:
    """Slots after a sequence's own count are 0, whatever the keys there are."""
    k = normal(2, 1, 70, 16)
    state = coded(k, np.array([3, 70]), Kind(False))
    assert state.planes[:, 0, :, 0, 0, :, :3].any()
    assert not state.planes[:, 0, :, 0, 1:].any()
    assert not state.planes[:, 0, :, 0, 0, :, 3:].any()
    assert not state.planes[:, 0, :, 1].any()


def test_a_sequence_is_opened_again_only_where_its_tile_was_full() -> None:
    old = Lengths.of(np.array([130, 130, 130, 127]), 4)
    new = Lengths.of(np.array([129, 128, 127, 100]), 4)
    assert code_store.reopened(old, new).tolist() == [False, False, True, False]


def test_sequences_are_taken_into_arrays_of_their_own() -> None:
    k = normal(2, 2, 100, 48)
    state = coded(k, 100, Kind(True, fine=True))
    taken = code_store.take(state, np.array([1, -1, 1]))
    assert taken.lengths.each.tolist() == [100, 0, 100]
    assert_array_equal(taken.planes[:, 0], state.planes[:, 1])
    assert not taken.planes[:, 1].any()
    assert not np.shares_memory(taken.planes, state.planes)


def test_read_only_arrays_are_copied_before_they_are_written() -> None:
    k = normal(1, 2, 70, 16)
    state = coded(k, 70, Kind(True, fine=True))
    assert state.centers is not None
    for x in parts(state):
        x.setflags(write=False)
    undos: list[Undo] = []
    cut = code_store.cut(state, state.lengths.cut(50), k, undos.append)
    same(cut, coded(k[:, :, :50], 50, Kind(True, fine=True)))
    assert undos == []
