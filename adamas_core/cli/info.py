"""Show the parts that this installation can use: backends, threads, SIMD, GPU."""

from __future__ import annotations

import argparse
import platform
import subprocess
import sys
from importlib import import_module, metadata, util
from pathlib import Path

from .. import __version__
from ..gpu import why_not
from .parser import no_effect

# Instruction sets that the kernels gain from, by LLVM's names, widest first.
SIMD = ("avx512vpopcntdq", "avx512bf16", "avx512f", "avx2", "f16c", "sve", "neon")
LIBRARIES = ("numpy", "numba", "array-api-compat")
# What sets the number of threads of each engine of the backend "cpu".
VARIABLES = {
    "library": "ADAMAS_NUM_THREADS, OMP_NUM_THREADS",
    "numba": "NUMBA_NUM_THREADS",
    "reference": "NumPy's own for matrices",
}
EXTRAS = ("gguf", "safetensors", "tokenizers", "ml_dtypes", "rich")


# The script that checks the GPU backend by its tests and benchmarks, which are not installed.
CHECK = Path(__file__).parents[2] / "benchmarks" / "gpu_check.py"


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--check",
        action="store_true",
        help="prove the GPU backend on this GPU, in about four minutes; only in a source tree",
    )
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="folder of the results of --check (gpu_check)"
    )


def run(args: argparse.Namespace) -> int:
    if args.check:
        return check(args.out or Path("gpu_check"))
    no_effect({"--out": args.out}, "without --check")
    for name, text in installation().items():
        print(f"{name:<12} {text}")
    return 0


def check(out: Path) -> int:
    """Run benchmarks/gpu_check.py; its exit status."""
    if not CHECK.is_file():
        raise ValueError(
            "--check needs a source tree, because the tests are not installed: run "
            "python -m adamas_core info --check at the root of a clone"
        )
    reason = why_not()
    if reason is not None:
        raise ValueError(f"--check needs a GPU: {reason}")
    command = [sys.executable, str(CHECK), "--out", str(out)]
    return subprocess.run(command, check=False).returncode


def installation() -> dict[str, str]:
    """Names of parts, and a line about each."""
    cpu = import_module("adamas_core.cpu._engine").ENGINE
    compiled = util.find_spec("adamas_core.cpu._pack") is not None
    missing = [name for name in EXTRAS if util.find_spec(name) is None]
    no_gpu = why_not()
    return {
        "adamas-core": f"{__version__}, Python {platform.python_version()}, {platform.platform()}",
        "libraries": ", ".join(f"{name} {_version(name)}" for name in LIBRARIES),
        "backends": f"reference (NumPy), cpu ({cpu.about}"
        + (", Cython append)" if compiled else "; the Cython append is not built)"),
        "threads": f"{cpu.threads()} ({VARIABLES[cpu.name]})",
        "SIMD": _simd() if cpu.name == "numba" else cpu.about,
        "GPU": "usable" if no_gpu is None else f"none: {no_gpu}",
        "llama": "complete"
        if not missing
        else f'{", ".join(missing)} missing: pip install "adamas-core[llama]"',
    }


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "not installed"


def _simd() -> str:
    """The processor, and what Numba's kernels gain from."""
    import llvmlite.binding as llvm

    features = llvm.get_host_cpu_features()
    found = ", ".join(name for name in SIMD if features.get(name)) or "none of use"
    return f"{llvm.get_host_cpu_name()}: {found}"
