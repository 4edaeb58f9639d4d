"""The same names, arguments and defaults in every home, and one docstring of each."""

from __future__ import annotations

import inspect
from types import ModuleType
from typing import Any

import pytest

import adamas_core
from adamas_core import reference

FIVE = ["hadamard", "quantize", "quantize_query", "score", "topk", "attend", "select_topk"]


def arguments(function: object) -> list[tuple[str, object]]:
    return [(p.name, p.default) for p in inspect.signature(function).parameters.values()]  # type: ignore[arg-type]


@pytest.mark.parametrize("name", FIVE)
def test_signature(backend: ModuleType, name: str) -> None:
    assert arguments(getattr(backend, name)) == arguments(getattr(adamas_core, name))


def test_decode_attention_of_the_reference() -> None:
    name = "decode_attention"
    assert arguments(getattr(reference, name)) == arguments(getattr(adamas_core, name))


def test_attend_topk_of_a_backend(every: Any) -> None:
    assert arguments(every.attend_topk) == arguments(reference.attend_topk)


def test_rerank_of_a_backend(every: Any) -> None:
    assert arguments(every.rerank) == arguments(reference.rerank)


@pytest.mark.parametrize("name", ["encode", "encode_centered"])
def test_encode_of_a_backend(backend: ModuleType, name: str) -> None:
    assert arguments(getattr(backend, name)) == arguments(getattr(reference, name))


@pytest.mark.parametrize("name", sorted(set(adamas_core.__all__) - {"__version__", "PAPER"}))
def test_docstring(name: str) -> None:
    """Every public function tells its parameters, by name, and what it raises."""
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
