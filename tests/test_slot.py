"""A state that is replaced by one store."""

from __future__ import annotations

import numpy as np

from adamas_core.code_store import Undo
from adamas_core.slot import Operation, Slot


def guarded(runs: bool = False) -> tuple[Slot[str], np.ndarray, Operation]:
    """A slot whose operation has begun to write over an array."""
    slot, array, operation = Slot("old"), np.zeros(3), Operation()
    slot.guard(operation)(Undo([(array, array.copy())]))
    array[:] = 1
    operation.runs = runs
    return slot, array, operation


def test_an_operation_that_does_not_end_is_undone_once() -> None:
    slot, array, _ = guarded()
    assert slot.now() == "old"
    np.testing.assert_array_equal(array, 0)
    array[:] = 2
    assert slot.now() == "old"
    np.testing.assert_array_equal(array, 2)


def test_a_reader_does_not_undo_an_operation_that_runs() -> None:
    """The reader is another thread, or a signal handler in the middle of the operation."""
    slot, array, operation = guarded(runs=True)
    assert slot.now() == "old"
    np.testing.assert_array_equal(array, 1)
    operation.runs = False
    assert slot.now() == "old"
    np.testing.assert_array_equal(array, 0)


def test_an_operation_that_has_ended_stays() -> None:
    slot, array, _ = guarded()
    slot.put("new")
    assert slot.now() == "new"
    np.testing.assert_array_equal(array, 1)


def test_an_interrupt_after_the_store_undoes_nothing() -> None:
    """`put` stores the state first, and an interrupt can come before its second store."""
    slot, array, _ = guarded()
    slot._state = "new"
    assert slot.now() == "new"
    np.testing.assert_array_equal(array, 1)


def test_an_operation_that_writes_over_two_arrays_is_undone_whole() -> None:
    slot, array, operation = guarded()
    other = np.zeros(2)
    slot.guard(operation)(Undo([(other, other.copy())]))
    other[:] = 1
    assert slot.now() == "old"
    np.testing.assert_array_equal(array, 0)
    np.testing.assert_array_equal(other, 0)


def test_free_slots_are_cleared_after_the_old_bytes_are_back() -> None:
    slot, operation, array = Slot("old"), Operation(), np.zeros(4)
    saved = [(array[:2], array[:2].copy())]
    slot.guard(operation)(Undo(saved, lambda: array[1:].fill(7)))
    array[:] = 1
    operation.runs = False
    assert slot.now() == "old"
    np.testing.assert_array_equal(array, [0, 7, 7, 7])
