"""JSON files of results, with the environment that they were measured in."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np

from .. import __version__
from ..file_errors import naming


def environment(model: Path | None, command: str) -> dict[str, Any]:
    """Command, date, versions, machine, and the model if there is one."""
    found = {
        "command": command,
        "date": date.today().isoformat(),
        "adamas_core": __version__,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "machine": f"{platform.machine()}, {os.cpu_count()} CPUs, {platform.system()}",
    }
    return found if model is None else {**found, "model": model.name}


def write_json(path: Path, report: Mapping[str, Any]) -> None:
    """Write JSON in which each item of a list has a line of its own. An OSError names the path."""
    parts = []
    for name, value in report.items():
        if isinstance(value, list):
            inner = ",\n".join(f"  {json.dumps(item)}" for item in value)
            parts.append(f" {json.dumps(name)}: [\n{inner}\n ]")
        else:
            parts.append(f" {json.dumps(name)}: {json.dumps(value)}")
    with naming(path):
        path.write_text("{\n" + ",\n".join(parts) + "\n}\n", encoding="utf-8")
