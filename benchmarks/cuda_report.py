"""Registers and spills of every CUDA kernel, compiled with NVRTC. This needs no GPU.

    python benchmarks/cuda_report.py

It writes benchmarks/results/cuda_report.md. The exit status is 1 if a variant spills. It needs the
extra cuda-check.
"""

from __future__ import annotations

import sys
from pathlib import Path

from adamas_core.gpu._kernels import KERNELS
from adamas_core.gpu._nvrtc import Resources, compile_variant, resources

ARCHITECTURES = ("sm_80", "sm_90", "sm_100")
RESULT = Path(__file__).parent / "results" / "cuda_report.md"


def cell(used: Resources) -> str:
    """Registers, and the other numbers that are not 0."""
    more = [f"{n} {name}" for name, n in used._asdict().items() if name != "registers" and n]
    return ", ".join([str(used.registers), *more])


def main() -> int:
    from cupy.cuda import nvrtc

    lines = [
        f"Registers per thread, NVRTC {'.'.join(map(str, nvrtc.getVersion()))}. Stack, spills and "
        "static shared memory are in bytes, and shown where they are not 0.",
        "",
        f"| kernel | {' | '.join(ARCHITECTURES)} |",
        f"| --- |{' ---: |' * len(ARCHITECTURES)}",
    ]
    spills = 0
    for kernel in KERNELS:
        for variant in kernel.variants:
            used = [resources(compile_variant(kernel, variant, a)) for a in ARCHITECTURES]
            spills += sum(u.spills > 0 for u in used)
            lines.append(f"| `{kernel.expression(variant)}` | {' | '.join(map(cell, used))} |")
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text("\n".join(lines) + "\n")
    print(f"{RESULT}: {len(lines) - 4} variants, {spills} with spills")
    return int(spills > 0)


if __name__ == "__main__":
    sys.exit(main())
