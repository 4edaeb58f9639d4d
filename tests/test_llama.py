"""The public names of adamas_core.llama, and the modules that its import loads."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from adamas_core import llama

ROOT = Path(__file__).resolve().parent.parent


def test_public_names_are_there():
    for name in llama.__all__:
        assert callable(getattr(llama, name))


def test_importing_loads_no_library_of_the_extra():
    heavy = ("gguf", "safetensors", "tokenizers", "ml_dtypes", "numba", "array_api_compat")
    script = f"import adamas_core.llama, sys; print(*set({heavy}) & set(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == []
