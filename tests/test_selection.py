"""Selection: checked where it is built, equal by value, and unable to change."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, asdict, replace

import numpy as np
import pytest

from adamas_core import Selection


def test_numpys_numbers_become_pythons() -> None:
    selection = Selection(sinks=np.int64(3), group=np.bool_(True))
    assert type(selection.sinks) is int
    assert selection.group is True
    assert selection == Selection(sinks=3, group=True)
    assert hash(selection) == hash(Selection(sinks=3, group=True))


def test_it_cannot_change() -> None:
    with pytest.raises(FrozenInstanceError):
        Selection().sinks = 3  # type: ignore[misc]


def test_a_changed_copy_is_checked_too() -> None:
    with pytest.raises(ValueError, match="refine=2"):
        replace(Selection(group=True), refine=2)


def test_it_goes_through_a_dict() -> None:
    """As the file of a cache keeps it."""
    selection = Selection("manhattan", sinks=1, recent=2, refine=4)
    assert Selection(**asdict(selection)) == selection
