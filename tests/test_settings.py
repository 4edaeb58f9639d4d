"""Metadata by name: its types, and JSON files."""

from __future__ import annotations

from pathlib import Path

import pytest

from adamas_core.llama import CheckpointError
from adamas_core.llama.settings import Settings

SETTINGS = Settings(Path("config.json"), {"layers": 2, "eps": 1, "name": "x"}.get)


def test_a_value_has_the_type_that_is_asked_for():
    assert SETTINGS.get("layers", int) == 2
    assert SETTINGS.get("absent", int, 3) == 3
    eps = SETTINGS.get("eps", float)
    assert eps == 1.0
    assert type(eps) is float


@pytest.mark.parametrize(
    ("name", "kind", "message"),
    [
        ("absent", int, "config.json: absent is missing"),
        ("name", int, "config.json: name is 'x', expected int"),
        ("layers", bool, "config.json: layers is 2, expected bool"),
    ],
)
def test_a_value_that_is_absent_or_of_another_type_is_an_error(name, kind, message):
    with pytest.raises(CheckpointError, match=message):
        SETTINGS.get(name, kind)
