"""The time of each kernel of a step on a GPU, beside its floor in bytes.

    python benchmarks/gpu_kernels.py --out results
    python benchmarks/gpu_kernels.py --out results --dry   # tiny sizes through the shim, no times

It needs torch with CUDA, whose profiler times every kernel of the process, CuPy's too. It writes
gpu_kernels.json with the mean of the steps after the first ten. The caches rotate as in
gpu_decode.py, and the steps run one after another without a graph.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

from adamas_core.gpu.decode_step import DecodeStep
from gpu_decode import HEAD_DIM, ROTATED, SHORT, Shape, device, filled, normal

STEPS = 30
DRY = [(4, 1, 1, 100)]  # query heads, KV heads, batch, tokens


def kernels(xp: Any, torch: Any, shape: Shape) -> dict[str, float]:
    """Microseconds per step of each kernel; none without torch."""
    caches = [filled(xp, shape, i) for i in range(shape.layers(ROTATED if torch else 0))]
    q = normal(xp, 10**6, (shape.batch, shape.heads, 1, HEAD_DIM))
    k = normal(xp, 10**6 + 1, (shape.batch, shape.kv_heads, 1, HEAD_DIM))
    step = DecodeStep(shape.heads, 1, caches[0], shape.budget, shape.selection)

    def run(steps: int) -> None:
        for i in range(steps):
            step(q, k, k, caches[i % len(caches)])
        if torch:
            xp.cuda.get_current_stream().synchronize()

    if torch is None:
        run(2)
        return {}
    run(10)
    activity = torch.profiler.ProfilerActivity.CUDA
    with torch.profiler.profile(activities=[activity]) as profile:
        run(STEPS)
    total: dict[str, float] = defaultdict(float)
    for event in profile.events():
        total[event.name.split("<")[0].removeprefix("void ")] += event.device_time
    return {name: us / STEPS for name, us in total.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    parser.add_argument("--budget", type=int, default=128)
    parser.add_argument("--dry", action="store_true")
    options = parser.parse_args()
    torch = None
    if not options.dry:
        import torch

        torch.zeros(1, device="cuda")
    results = []
    with device(options.dry) as xp:
        for heads, kv_heads, batch, tokens in DRY if options.dry else SHORT:
            for codes in ("tail", "centered", "plain"):
                budget = min(options.budget, tokens)
                shape = Shape(batch, heads, kv_heads, tokens, budget, "weighted", codes)
                results.append({**shape._asdict(), "us": kernels(xp, torch, shape)})
                print(json.dumps(results[-1]), flush=True)
                if torch:
                    xp.get_default_memory_pool().free_all_blocks()
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "gpu_kernels.json").write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
