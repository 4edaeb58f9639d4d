"""Keywords of a call that change its objects."""

from __future__ import annotations

import pytest

from adamas_core import Selection, Softmax
from adamas_core.options import both_with, softmax_with


def test_no_keyword_changes_nothing() -> None:
    softmax, selection = Softmax(0.1), Selection(sinks=2)
    assert softmax_with("f", softmax, {}) is softmax
    assert both_with("f", selection, softmax, {}) == (selection, softmax)


def test_keywords_change_their_own_object() -> None:
    assert softmax_with("f", Softmax(0.1), {"soft_cap": 3}) == Softmax(0.1, 3)
    got = both_with("f", Selection(sinks=2), Softmax(0.1), {"soft_cap": 3, "tail": 5})
    assert got == (Selection(sinks=2, tail=5), Softmax(0.1, 3))


def test_unknown_keywords() -> None:
    with pytest.raises(TypeError, match=r"f: no option 'tail'; expected scale, soft_cap, sink_log"):
        softmax_with("f", Softmax(), {"tail": 5})
    with pytest.raises(TypeError, match=r"f: no option 'cap'; expected metric, .*, soft_cap"):
        both_with("f", Selection(), Softmax(), {"cap": 5, "tail": 3})


def test_other_objects() -> None:
    with pytest.raises(TypeError, match="softmax is of type float; expected a Softmax, or scale"):
        softmax_with("f", 0.1, {})  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="softmax is of type float; expected a Softmax, or scale"):
        both_with("f", Selection(), 0.1, {})  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="f: selection is of type Softmax; expected a Selection"):
        both_with("f", Softmax(), Softmax(), {})  # type: ignore[arg-type]
