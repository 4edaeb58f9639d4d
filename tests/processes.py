"""Python in processes of its own, over the package that the tests run on."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import adamas_core

HOME = Path(adamas_core.__file__).parents[1]  # the folder that holds the package


def run(
    code: str, path: Path = HOME, **environment: str | None
) -> subprocess.CompletedProcess[str]:
    """Run a program with adamas_core from `path`. A variable that is None is not set there."""
    variables = {**os.environ, "PYTHONPATH": str(path), **environment}
    return subprocess.run(
        [sys.executable, "-c", code],
        env={name: value for name, value in variables.items() if value is not None},
        capture_output=True,
        text=True,
        cwd="/",  # Python searches the current folder first, which may hold another adamas_core
        timeout=300,
        check=False,
    )


def printed(code: str, path: Path = HOME, **environment: str | None) -> str:
    """What the program prints. It must end well."""
    done = run(code, path, **environment)
    assert done.returncode == 0, f"exit {done.returncode}: {done.stdout}\n{done.stderr}"
    return done.stdout.strip()
