"""The examples of docs/examples run as programs, and their own assertions hold."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import with_jax

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "docs" / "examples"
# An example is run where the libraries that it needs are installed.
NEEDS = {
    "numpy_decode": [],
    "torch_decode": ["torch", "ml_dtypes"],
    "jax_decode": ["jax"],
    "onnxruntime_decode": ["onnx", "onnxruntime"],
    "own_decoder": [],
    "own_arrays": [],
    "transformers_decode": ["torch", "transformers", "ml_dtypes"],
}


def test_every_example_is_run_and_listed() -> None:
    files = {file.stem for file in FOLDER.glob("*.py")}
    assert files == set(NEEDS)
    listed = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert [name for name in files if f"({name}.py)" not in listed] == []


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.peers] if NEEDS[n] else []) for n in NEEDS]
)
def test_example(name: str, tmp_path: Path) -> None:
    missing = [library for library in NEEDS[name] if find_spec(library) is None]
    if not missing and "jax" in NEEDS[name] and with_jax.missing() is not None:
        pytest.skip(f"{name}.py {with_jax.missing()}")
    if missing:
        pytest.skip(f"{name}.py needs {', '.join(missing)}, not installed here")
    done = subprocess.run(
        [sys.executable, FOLDER / f"{name}.py"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout
