"""The version stands in one place, and the changelog agrees with it.

`test_packaging.py` compares it with the version of the installed package.
"""

from __future__ import annotations

import ast
import re
import tomllib
from pathlib import Path

import adamas_core

ROOT = Path(__file__).resolve().parent.parent


def test_a_build_reads_the_version_without_importing_the_package() -> None:
    """setuptools imports the package unless the assignment is a plain string."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert settings["tool"]["setuptools"]["dynamic"]["version"] == {
        "attr": "adamas_core.__version__"
    }
    tree = ast.parse((ROOT / "adamas_core" / "__init__.py").read_text(encoding="utf-8"))
    assigned = [
        ast.literal_eval(statement.value)
        for statement in tree.body
        if isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) == "__version__"
    ]
    assert assigned == [adamas_core.__version__]


def test_no_other_file_states_a_version() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert "version" not in project
    assert not re.search(r"(?m)^version:", (ROOT / "CITATION.cff").read_text(encoding="utf-8"))


def test_the_changelog_begins_with_unreleased_and_this_version() -> None:
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    sections = re.findall(r"(?m)^## \[(.+?)\]", text)
    assert sections[:2] == ["Unreleased", adamas_core.__version__]
    assert len(set(sections)) == len(sections)
