"""The command ``adamas-core demo``."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def test_demo_without_a_network(tmp_path: Path) -> None:
    """One sentence that says what is missing, and exit code 2."""
    run = subprocess.run(
        [sys.executable, "-m", "adamas_core", "demo"],
        env={
            **os.environ,
            "ADAMAS_CACHE": str(tmp_path),
            "PIP_INDEX_URL": "http://127.0.0.1:9/simple",
            "PIP_EXTRA_INDEX_URL": "",
            "PIP_FIND_LINKS": "",
            "PIP_CONFIG_FILE": os.devnull,
        },
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parent.parent,
    )
    assert run.returncode == 2, run.stderr
    assert "Traceback" not in run.stderr
    last = run.stderr.splitlines()[-1]
    assert last.startswith(f"adamas-core demo: the model is not in {tmp_path} and pip could not")
    assert not list(tmp_path.iterdir())
