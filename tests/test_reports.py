"""JSON files of results."""

from __future__ import annotations

import json
from pathlib import Path

from adamas_core.lab.reports import environment, write_json


def test_each_item_of_a_list_has_a_line(tmp_path: Path) -> None:
    report = {"date": "today", "rows": [{"a": 1}, {"b": [2, 3]}], "cells": []}
    write_json(tmp_path / "r.json", report)
    text = (tmp_path / "r.json").read_text()
    assert json.loads(text) == report
    assert '\n  {"a": 1},\n  {"b": [2, 3]}\n' in text


def test_environment() -> None:
    found = environment(Path("folder/model.gguf"), "adamas-core compare")
    assert (found["model"], found["command"]) == ("model.gguf", "adamas-core compare")
    assert "model" not in environment(None, "adamas-core compare --offsets")
    assert {"date", "adamas_core", "numpy", "python", "machine"} <= set(found)
