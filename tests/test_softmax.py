"""Softmax: what it takes, and the reference's logits and sinks."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from adamas_core import Softmax
from adamas_core.reference.softmax import capped, factor, sink_of


def test_fields_are_kept_as_numbers() -> None:
    given = Softmax(np.float32(0.5), np.int64(30), [1, -np.inf])
    assert (type(given.scale), type(given.soft_cap)) == (float, float)
    assert (given.scale, given.soft_cap) == (0.5, 30.0)
    assert given.sink_logits is not None
    assert given.sink_logits.dtype == np.float32
    assert given.sink_logits.tolist() == [1, -np.inf]


def test_sinks_are_a_copy_that_cannot_change() -> None:
    own = np.ones(3, np.float32)
    sinks: Any = Softmax(sink_logits=own).sink_logits
    own[:] = 7
    assert sinks.tolist() == [1, 1, 1]
    with pytest.raises(ValueError, match="read-only"):
        sinks[0] = 0


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_sinks_of_a_copy_cannot_change_either(copied: Callable[[Softmax], Softmax]) -> None:
    own = Softmax(0.1, 30, [1, -np.inf])
    other: Any = copied(own)
    assert other == own
    with pytest.raises(ValueError, match="read-only"):
        other.sink_logits[0] = 0


def test_equal_fields_are_equal() -> None:
    sinks = np.array([0.5, 1])
    assert Softmax(0.1, sink_logits=sinks) == Softmax(0.1, sink_logits=sinks.astype(np.float16))
    assert hash(Softmax(0.1, sink_logits=sinks)) == hash(Softmax(0.1, sink_logits=[0.5, 1]))
    assert hash(Softmax(sink_logits=[0.0])) == hash(Softmax(sink_logits=[-0.0]))
    assert Softmax(sink_logits=sinks) != Softmax(sink_logits=sinks + 1)
    assert Softmax(sink_logits=sinks) != Softmax()
    assert Softmax(soft_cap=2) != Softmax()
    assert Softmax() != 1


WRONG: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "cap 0": ({"soft_cap": 0}, ValueError, "soft_cap=0; expected a number above 0"),
    "cap below 0": ({"soft_cap": -1.0}, ValueError, "soft_cap=-1.0; expected a number above 0"),
    "cap of float64": ({"soft_cap": 1e-60}, ValueError, "soft_cap=1e-60; expected a number above"),
    "cap inf": ({"soft_cap": np.inf}, ValueError, "soft_cap=inf; expected a finite number"),
    "cap nan": ({"soft_cap": np.nan}, ValueError, "soft_cap=nan; expected a finite number"),
    "cap text": ({"soft_cap": "1"}, TypeError, "soft_cap='1'; expected a number"),
    "cap true": ({"soft_cap": True}, TypeError, "soft_cap=True; expected a number"),
    "sinks nan": ({"sink_logits": [0, np.nan]}, ValueError, r"sink_logits=\[0.0, nan\]; expected"),
    "sinks inf": ({"sink_logits": [np.inf]}, ValueError, r"sink_logits=\[inf\]; expected numbers"),
    "sinks beyond": ({"sink_logits": [1e39]}, ValueError, r"sink_logits=\[inf\]; expected numbers"),
    "sinks of 2 axes": ({"sink_logits": np.ones((2, 1))}, ValueError, r"\(2, 1\); expected \(H,\)"),
    "sinks of no axis": ({"sink_logits": np.array(1.0)}, ValueError, r"\(\); expected \(H,\)"),
    "no sinks": ({"sink_logits": []}, ValueError, r"\(0,\); expected \(H,\)"),
    "ragged sinks": ({"sink_logits": [[1], [2, 3]]}, ValueError, r"expected \(H,\)"),
    "sinks of words": ({"sink_logits": ["a"]}, TypeError, "sink_logits is .*; expected real"),
    "sinks complex": ({"sink_logits": [1j]}, TypeError, "sink_logits is .*; expected real"),
    "a text": (
        {"sink_logits": "ab"},
        TypeError,
        "sink_logits is a builtins.str; expected",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_it_refuses(case: str) -> None:
    fields, kind, message = WRONG[case]
    with pytest.raises(kind, match=message):
        Softmax(**fields)


def test_the_cap() -> None:
    x = np.array([-np.inf, -1e9, -1.0, 0.0, 1e-9, 0.5, 1e9, np.inf, np.nan])
    np.testing.assert_array_equal(capped(x, None), x)
    np.testing.assert_array_equal(capped(x, Softmax()), x)
    got = capped(x, Softmax(soft_cap=2))
    expected = [-2, -2, -2 * np.tanh(0.5), 0, 1e-9, 2 * np.tanh(0.25), 2, 2, np.nan]
    np.testing.assert_allclose(got, expected, rtol=1e-15)


def test_the_scale_and_the_sink_of_a_head() -> None:
    assert factor(None, 16) == factor(Softmax(), 16) == 0.25
    assert factor(Softmax(0), 16) == 0
    assert sink_of(None, 1) == sink_of(Softmax(), 1) == -np.inf
    assert sink_of(Softmax(sink_logits=[1, 2]), 1) == 2


@pytest.mark.peers
def test_sinks_of_torch() -> None:
    torch = pytest.importorskip("torch")
    for dtype in (torch.float32, torch.bfloat16):
        sinks = torch.tensor([0.5, -2], dtype=dtype, requires_grad=True)
        assert Softmax(sink_logits=sinks) == Softmax(sink_logits=[0.5, -2])
