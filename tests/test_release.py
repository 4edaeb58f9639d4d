"""The version stands in one place, and the changelog agrees with it."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

from setuptools.config.pyprojecttoml import read_configuration

import adamas_core

ROOT = Path(__file__).resolve().parent.parent


def test_the_build_reads_the_version_of_the_package() -> None:
    project = read_configuration(ROOT / "pyproject.toml")["project"]
    assert project["version"] == adamas_core.__version__


def test_no_other_file_states_a_version() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert "version" not in project
    assert not re.search(r"(?m)^version:", (ROOT / "CITATION.cff").read_text(encoding="utf-8"))


def test_the_changelog_begins_with_unreleased_and_this_version() -> None:
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    sections = re.findall(r"(?m)^## \[(.+?)\]", text)
    assert sections[:2] == ["Unreleased", adamas_core.__version__]
    assert len(set(sections)) == len(sections)
