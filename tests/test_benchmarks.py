"""The GPU benchmark's whole path, without a GPU and without timings."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def benchmark(monkeypatch: Any) -> Any:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import gpu_decode

    return gpu_decode


def test_dry(device: Any) -> None:
    """The command itself: kernels through the shim, JSON, table and plot."""
    if device.__name__ == "cupy":
        pytest.skip("there is a GPU to run it on")
    done = subprocess.run(
        [sys.executable, "benchmarks/gpu_decode.py", "--dry"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    results = [json.loads(line) for line in lines if line.startswith("{")]
    assert len(results) == 2 * 2 * 2 * 3
    assert {name for result in results for name in result["ms"]} == {
        "step",
        "selection",
        "copy_of_codes",
    }
    assert (
        sum(line.startswith("| 4/1 | 2 | 200 | 16 | weighted | centered | - |") for line in lines)
        == 1
    )
    assert lines[-1].startswith("dry: every shape ran")


def test_report_of_times(benchmark: Any, tmp_path: Path) -> None:
    """Table and plot from a JSON whose numbers are made up here."""
    results = [
        {
            **benchmark.Shape(1, 32, 8, tokens, 128, "weighted", "centered")._asdict(),
            "layers": 2,
            "ms": {
                "step": 0.01,
                "selection": 0.005,
                "copy_of_codes": 0.006,
                "dense_sdpa_gqa_math": None,
                "dense_sdpa_grouped_flash_attention": tokens / 2e5,
                "dense_flashinfer": tokens / 1e5,
                "torch_topk_of_exact_scores": 1e-9,
            },
        }
        for tokens in (4096, 32768)
    ]
    path = tmp_path / "gpu_decode_made_up.json"
    path.write_text(json.dumps({"device": "none", "date": "never", "results": results}))
    benchmark.main(["--report", str(path)])
    last = path.with_suffix(".md").read_text().splitlines()[-1]
    # Codes of 8 heads at 37 bytes per token, and 128 rows of k and v at 512 bytes for 32 heads.
    step, dense = 8 * 32768 * 37 + 32 * 128 * 512, 8 * 32768 * 512
    assert last == (
        "| 32/8 | 1 | 32768 | 128 | weighted | centered | 0.0100 "
        "| 0.1638 dense_sdpa_grouped_flash_attention | 16.4 | 0.0050 | 60% "
        f"| {step / 1e6:.1f} | {dense / 1e6:.1f} |"
    )
    assert path.with_suffix(".svg").is_file() == (find_spec("matplotlib") is not None)
