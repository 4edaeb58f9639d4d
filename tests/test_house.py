"""The rules of the house that a program can check: imports run one way, options are one object."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import pytest

from adamas_core import Selection

ROOT = Path(__file__).resolve().parent.parent

# Each floor imports from itself and from the floors before it. cpu and gpu are on one floor and do
# not know each other.
FLOORS = {
    "reference": {"reference"},
    "cpu": {"reference", "cpu"},
    "gpu": {"reference", "gpu"},
    "core": {"reference", "cpu", "gpu", "core"},
    "llama": {"reference", "core", "llama"},
    "lab": {"reference", "core", "llama", "lab"},
    "cli": {"reference", "cpu", "gpu", "core", "llama", "lab", "cli"},
}
OPTIONS = {field.name for field in fields(Selection)}
MOST_PARAMETERS = 10
MOST_LINES = 60


def floor_of(module: str) -> str:
    """The floor of a module's full name, adamas_core.<...>."""
    part = [*module.split("."), "", ""][1]
    if part == "__main__":
        return "cli"
    return part if part in FLOORS else "core"


def sources() -> dict[str, Path]:
    """Every module of the package, by its full name."""
    found = {}
    for folder in ("adamas_core", "reference", "cpu", "gpu"):
        for file in sorted((ROOT / folder).rglob("*.py")):
            parts = file.relative_to(ROOT).with_suffix("").parts
            parts = parts if folder == "adamas_core" else ("adamas_core", *parts)
            found[".".join(parts).removesuffix(".__init__")] = file
    return found


SOURCES = sources()


def imported(module: str) -> Iterator[str]:
    """Full names of the package's modules that a module imports anywhere, for types too."""
    file = SOURCES[module]
    package = module if file.name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parent = package.rsplit(".", node.level - 1)[0] if node.level > 1 else package
                base = f"{parent}.{base}" if base else parent
            names = [f"{base}.{alias.name}" for alias in node.names]
            names = [name if name in SOURCES else base for name in names]
        else:
            continue
        yield from (name for name in names if name.partition(".")[0] == "adamas_core")


def functions(file: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield node


def parameters(function: ast.FunctionDef | ast.AsyncFunctionDef) -> list[str]:
    given = function.args
    every = [*given.posonlyargs, *given.args, *given.kwonlyargs]
    return [argument.arg for argument in every if argument.arg not in ("self", "cls")]


@pytest.mark.parametrize("module", SOURCES)
def test_imports_run_one_way(module: str) -> None:
    allowed = FLOORS[floor_of(module)]
    upward = {name for name in imported(module) if floor_of(name) not in allowed}
    # The package's own version is all that the floors above read of adamas_core/__init__.py.
    assert not upward


def test_no_module_imports_itself_through_others() -> None:
    """No circle, late imports and imports for types included."""
    arrows = {m: {n for n in imported(m) if n in SOURCES and n != m} for m in SOURCES}
    done: set[str] = set()

    def visit(module: str, path: list[str]) -> None:
        assert module not in path, " -> ".join([*path[path.index(module) :], module])
        if module not in done:
            for other in sorted(arrows[module]):
                visit(other, [*path, module])
            done.add(module)

    for module in SOURCES:
        visit(module, [])


@pytest.mark.parametrize("module", SOURCES)
def test_no_signature_names_two_options(module: str) -> None:
    for function in functions(SOURCES[module]):
        named = OPTIONS.intersection(parameters(function))
        assert len(named) < 2, f"{module}.{function.name} names {sorted(named)}"


@pytest.mark.parametrize("module", SOURCES)
def test_no_signature_names_a_cap_or_sinks(module: str) -> None:
    """They go with the Softmax."""
    for function in functions(SOURCES[module]):
        assert not {"soft_cap", "sink_logits"}.intersection(parameters(function)), function.name


@pytest.mark.parametrize("module", SOURCES)
def test_functions_are_short(module: str) -> None:
    """At most 10 parameters and 60 lines, the docstring not counted."""
    for function in functions(SOURCES[module]):
        count = len(parameters(function))
        assert count <= MOST_PARAMETERS, f"{module}.{function.name} has {count} parameters"
        body = function.body[1:] if ast.get_docstring(function) else function.body
        assert function.end_lineno is not None
        lines = function.end_lineno - body[0].lineno + 1 if body else 0
        name = f"{module}.{function.name}"
        assert lines <= MOST_LINES, f"{name} has {lines} lines"


def test_every_file_has_its_tests() -> None:
    """test_<file>.py for each file with functions: the test of a function is found by its name."""
    tests = {file.stem for file in (ROOT / "tests").rglob("test_*.py")}
    files = {m: f for m, f in SOURCES.items() if f.name != "__init__.py" and any(functions(f))}
    names = {module.rpartition(".")[2] for module in files}
    missing = {n for n in names if not n.startswith("_") and f"test_{n}" not in tests}
    assert not missing


def test_no_test_imports_another() -> None:
    for file in (ROOT / "tests").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module:
                assert not node.module.startswith("test_"), f"{file.name} imports {node.module}"
