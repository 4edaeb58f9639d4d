"""Prove the GPU backend on a GPU, in one command of at most ten minutes.

    python benchmarks/gpu_check.py --out results
    python benchmarks/gpu_check.py --out results --dry   # on a CPU, tiny sizes, no sanitizer

It runs from a source tree without network and without an installation. It needs CuPy, NumPy,
array-api-compat, pytest, pytest-xdist, hypothesis, SciPy and ml_dtypes; set PYTHONPATH to a folder
that holds those of them that are missing. Compiled kernels are read from CUPY_CACHE_DIR if they are
there. Each phase has a time limit. The most important phases run first. Each writes its log and its
line of gpu_check.json as soon as it ends. The exit status is 1 if a phase fails.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from datetime import date
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
DRY_TESTS = ("hadamard",)
SANITIZER = ("memcheck", "initcheck", "synccheck", "racecheck")
TESTS = (  # the tests that run kernels
    *("attend", "cache", "cache_file", "center", "codes", "contract", "decode_step", "dispatch"),
    *("gpu", "hadamard", "quantize", "rerank", "score", "select", "tail", "topk"),
)
ONE_KERNEL = """
import sys
import numpy as np
from adamas_core import gpu, reference
from gpu_decode import device, versions
print(gpu.why_not(), versions(), "NumPy", np.__version__)
with device(dry="--dry" in sys.argv) as xp:
    if "--dry" not in sys.argv:
        print(xp.cuda.runtime.getDeviceProperties(0)["name"].decode(), xp.cuda.nvrtc.getVersion())
    x = np.random.default_rng(0).standard_normal((4, 128), np.float32)
    assert (gpu.hadamard(xp.asarray(x)).get() == reference.hadamard(x)).all()
"""
DRY_SHAPE = ["--tokens", "100", "--batch", "1", "--heads", "4/1", "--metric", "weighted"]


class Phase(NamedTuple):
    """One command of the check."""

    name: str
    seconds: int
    command: list[str]


def phases(out: Path, processes: int, dry: bool) -> list[Phase]:
    """All phases in their order; in a dry run those that need no tool of CUDA."""
    python = sys.executable
    files = [f"tests/test_{name}.py" for name in (DRY_TESTS if dry else TESTS)]
    pytest = [python, "-m", "pytest", "-q", "-n", str(processes), "-p", "no:cacheprovider"]
    large = [python, "benchmarks/gpu_large.py"]
    tiny = [*large, "--tiny", "--no-pool"]
    decode = [python, "benchmarks/gpu_decode.py"]
    kernels = [python, "benchmarks/gpu_kernels.py", "--out", str(out)]
    if dry:
        return [
            Phase("kernel", 60, [python, "-c", ONE_KERNEL, "--dry"]),
            Phase("tests", 170, [*pytest, "-m", "shim", *files]),
            Phase("large", 170, [*large, "--dry"]),
            Phase("benchmark", 170, [*decode, "--dry", *DRY_SHAPE]),
            Phase("kernels", 170, [*kernels, "--dry", "--budget", "16"]),
        ]
    sanitizer = [
        Phase(tool, 40, ["compute-sanitizer", "--tool", tool, "--error-exitcode", "1", *tiny])
        for tool in SANITIZER
    ]
    return [
        Phase("kernel", 40, [python, "-c", ONE_KERNEL]),
        Phase("tests", 170, [*pytest, "-m", "shim", *files]),
        Phase("large", 90, large),
        *sanitizer,
        Phase("benchmark", 170, [*decode, "--short", "--out", str(out)]),
        Phase("kernels", 60, kernels),
    ]


def run(phase: Phase, out: Path, dry: bool) -> dict[str, object]:
    """Run one phase; its result and the end of its log."""
    start = time.perf_counter()
    log = out / f"{phase.name}.log"
    path = f"{ROOT}:{ROOT / 'benchmarks'}:{os.environ.get('PYTHONPATH', '')}"
    environment = {**os.environ, "PYTHONPATH": path}
    if not dry:
        environment["ADAMAS_REQUIRE_GPU"] = "1"
    with log.open("wb") as file:
        try:
            status: int | str = subprocess.run(
                phase.command,
                cwd=ROOT,
                env=environment,
                stdout=file,
                stderr=subprocess.STDOUT,
                timeout=phase.seconds,
                check=False,
            ).returncode
        except subprocess.TimeoutExpired:
            status = f"stopped after {phase.seconds} s"
        except OSError as error:
            status = str(error)
    seconds = round(time.perf_counter() - start, 1)
    end = log.read_text(errors="replace").splitlines()[-3:]
    return {"phase": phase.name, "status": status, "seconds": seconds, "end": end}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    parser.add_argument("--phases", nargs="+", help="only these")
    parser.add_argument("--processes", type=int, default=8, help="of the tests")
    parser.add_argument("--dry", action="store_true")
    options = parser.parse_args()
    out = options.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    results: list[dict[str, object]] = []
    for phase in phases(out, options.processes, options.dry):
        if options.phases and phase.name not in options.phases:
            continue
        results.append(run(phase, out, options.dry))
        print(json.dumps(results[-1]), flush=True)
        whole = {"date": date.today().isoformat(), "phases": results}
        (out / "gpu_check.json").write_text(json.dumps(whole, indent=1) + "\n")
    return int(any(result["status"] != 0 for result in results))


if __name__ == "__main__":
    sys.exit(main())
