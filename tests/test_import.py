"""The modules that ``import adamas_core`` loads, and its public names."""

from __future__ import annotations

import ast
import subprocess
import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest

import adamas_core

ROOT = Path(__file__).resolve().parent.parent
HEAVY = {"numba", "llvmlite", "cupy", "scipy", "torch", "ml_dtypes", "array_api_compat"}


def loaded_by(statement: str) -> set[str]:
    """The top-level modules in sys.modules of a fresh interpreter after the statement."""
    script = f"{statement}\nimport sys\nprint(*{{name.partition('.')[0] for name in sys.modules}})"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return set(done.stdout.split())


@pytest.mark.parametrize(
    "statement",
    ["import adamas_core", "import adamas_core.gpu"],
)
def test_importing_is_light(statement: str) -> None:
    loaded = loaded_by(statement)
    assert "adamas_core" in loaded
    assert not loaded & HEAVY


def test_public_names_are_those_that_type_checkers_see() -> None:
    tree = ast.parse(Path(adamas_core.__file__).read_text(encoding="utf-8"))
    seen = {
        alias.asname or alias.name: statement.module
        for block in tree.body
        if isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING"
        for statement in block.body
        if isinstance(statement, ast.ImportFrom)
        for alias in statement.names
    }
    assert seen == adamas_core._HOME
    assert set(adamas_core.__all__) == {*seen, "__version__"}
    assert set(adamas_core.__all__) <= set(dir(adamas_core))


@pytest.mark.parametrize("name", adamas_core.__all__)
def test_public_name_is_found_where_it_is_said_to_be(name: str) -> None:
    value = getattr(adamas_core, name)
    if name != "__version__":
        home = import_module(f"adamas_core.{adamas_core._HOME[name]}")
        assert value is getattr(home, name)
        assert vars(adamas_core)[name] is value  # the second access is a plain one


def test_unknown_name() -> None:
    with pytest.raises(AttributeError, match="nonsense"):
        _ = adamas_core.nonsense


def test_no_public_name_is_that_of_a_module() -> None:
    """Else an import of the module would put it in the place of the function."""
    names = [name for name in adamas_core.__all__ if not name.startswith("_")]
    assert [name for name in names if find_spec(f"adamas_core.{name}") is not None] == []
