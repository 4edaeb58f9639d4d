"""Every backend has the same names, arguments and defaults, and every public name its docstring."""

from __future__ import annotations

import inspect
from typing import Any

import pytest

import adamas_core
from adamas_core import reference
from adamas_core.softmax import PLAIN

SINGLE = ["hadamard", "quantize", "quantize_query", "score", "attend"]


def arguments(function: object) -> list[tuple[str, object]]:
    return [(p.name, p.default) for p in inspect.signature(function).parameters.values()]  # type: ignore[arg-type]


@pytest.mark.parametrize("name", reference.__all__)
def test_a_backend_has_the_signatures_of_the_reference(every: Any, name: str) -> None:
    assert arguments(getattr(every, name)) == arguments(getattr(reference, name))


# What public functions have beside the arguments of backends.
PUBLIC = {"options", "positions", "return_scores"}


@pytest.mark.parametrize("name", SINGLE)
def test_a_public_operation_has_the_signature_of_the_reference(name: str) -> None:
    public = [x for x in arguments(getattr(adamas_core, name)) if x[0] not in PUBLIC]
    # The class that gives the default of `softmax` is on a floor above the backends.
    public = [(name, None if default is PLAIN else default) for name, default in public]
    assert public == arguments(getattr(reference, name))


@pytest.mark.parametrize("name", ["topk", "select_topk"])
def test_only_the_default_of_selection_differs(name: str) -> None:
    """The class that gives the default is on a floor above the backends."""
    public = [argument for argument, _ in arguments(getattr(adamas_core, name))]
    own = [argument for argument, _ in arguments(getattr(reference, name))]
    assert [argument for argument in public if argument not in PUBLIC] == own


@pytest.mark.parametrize("name", sorted(set(adamas_core.__all__) - {"__version__", "PAPER"}))
def test_docstring(name: str) -> None:
    """The docstring names all parameters, and has the sections that it needs."""
    thing = getattr(adamas_core, name)
    text = inspect.getdoc(thing)
    assert text
    sections = (
        ["Parameters"] if inspect.isclass(thing) or name == "checked" else ["Returns", "Raises"]
    )
    for section in sections:
        assert f"{section}\n{'-' * len(section)}" in text
    for parameter, _ in arguments(thing):
        assert parameter in text
