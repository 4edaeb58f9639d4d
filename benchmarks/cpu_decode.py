"""One decode step on the CPU, raw query in and output out, against PyTorch's dense attention.

    python benchmarks/cpu_decode.py --cases 32/8/32768 --metric manhattan weighted

Cold: before every call as much other memory is read as empties the caches, as the other layers of
a model do. Hot: the same call was just made. All forms take turns in one run, so that they see the
same machine; the ratio is between medians. The floor is the time of plainly reading as many bytes
as the step must.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace

import numba
import numpy as np
import torch
import torch.nn.functional as F

import adamas_core
from adamas_core import cpu

RESULTS = Path(__file__).parent / "results"
EVICT_BYTES = 192 << 20  # several times the last-level cache
TORCH_DTYPES = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}


def torch_forms(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> dict[str, Callable]:
    """Dense decode attention of q (1, H, 1, D) over k, v (1, H_kv, S, D), in every usual form."""
    H, D = q.shape[1], q.shape[3]
    H_kv = k.shape[1]
    G = H // H_kv
    scale = D**-0.5
    expanded = [x.repeat_interleave(G, dim=1) if G > 1 else x for x in (k, v)]  # not timed

    def matmuls(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return torch.softmax((q * scale) @ k.transpose(-1, -2), dim=-1) @ v

    grouped = q.view(1, H_kv, G, D)
    forms = {
        "sdpa, enable_gqa": lambda: F.scaled_dot_product_attention(q, k, v, enable_gqa=True),
        "grouped matmuls": lambda: matmuls(grouped, k, v).view(q.shape),
    }
    if G > 1:
        # A group of query heads is G queries of one KV head: no causal mask, so this is the same.
        forms["sdpa, group as queries"] = lambda: F.scaled_dot_product_attention(
            grouped, k, v
        ).view(q.shape)
        forms["sdpa, expanded heads"] = lambda: F.scaled_dot_product_attention(q, *expanded)
        forms["matmuls, expanded heads"] = lambda: matmuls(q, *expanded)
    return forms


def interleaved(
    forms: dict[str, Callable], repeats: int, prepare: Callable[[Callable], object]
) -> dict[str, np.ndarray]:
    """Milliseconds of every form, taking turns."""
    times: dict[str, list[float]] = {name: [] for name in forms}
    for form in forms.values():
        form()
    for _ in range(repeats):
        for name, form in forms.items():
            prepare(form)
            start = time.perf_counter()
            form()
            times[name].append(1e3 * (time.perf_counter() - start))
    return {name: np.array(t) for name, t in times.items()}


def bytes_that_must_move(
    H: int, H_kv: int, S: int, D: int, budget: int, item: int, lists: int
) -> int:
    """Every code once; K and V of the chosen rows, once where query heads share them."""
    codes = H_kv * S * D // 4
    return codes + 2 * lists * D * item


def run_case(case: str, args: argparse.Namespace, evict: np.ndarray) -> list[dict]:
    H, H_kv, S = (int(x) for x in case.split("/"))
    D, budget = args.head_dim, args.budget
    rng = np.random.default_rng(0)
    dtype = TORCH_DTYPES[args.dtype]
    # PyTorch and the library read the same memory.
    tensors = [
        torch.from_numpy(rng.standard_normal((1, heads, n, D), dtype=np.float32)).to(dtype)
        for heads, n in ((H, 1), (H_kv, S), (H_kv, S))
    ]
    q, k, v = (to_numpy(x) for x in tensors)
    P = -(-D // 64)
    codes = SimpleNamespace(
        planes=rng.integers(0, 2**64, (2, 1, H_kv, S // 64, 8, P, 8), dtype=np.uint64),
        length=S,
        thresholds=np.tile(np.float32([-1, 0, 1]), (H_kv, 1)),
    )

    def step(metric: str, bits: int) -> np.ndarray:
        return cpu.attend(q, k, v, cpu.select_topk(q, codes, budget, metric, bits))

    ours: dict[str, Callable] = {}
    for metric in args.metric:
        for bits in args.query_bits if metric == "weighted" else [4]:
            name = metric if metric == "manhattan" else f"weighted, query_bits {bits}"
            ours[name] = lambda metric=metric, bits=bits: step(metric, bits)
    peers = torch_forms(*tensors)
    check_dense(cpu.attend(q, k, v, None), peers)
    if args.fastest:  # drop the slow ones after a trial
        trial = interleaved(peers, 2, lambda form: evict.sum())
        best = sorted(peers, key=lambda name: trial[name].min())[: args.fastest]
        peers = {name: peers[name] for name in best}

    rows = []
    for state, prepare in (("cold", lambda form: evict.sum()), ("hot", lambda form: form())):
        chosen = cpu.select_topk(q, codes, budget, "manhattan")
        G = H // H_kv
        lists = sum(np.unique(chosen[0, h : h + G]).size for h in range(0, H, G))
        moved = bytes_that_must_move(H, H_kv, S, D, budget, k.dtype.itemsize, lists)
        plain = np.ones(moved // 8, np.int64)
        floor = {"plain read": lambda plain=plain: read(plain)}
        read(plain)
        times = interleaved({**ours, **peers, **floor}, args.repeats, prepare)
        fastest = min(peers, key=lambda name: np.median(times[name]))
        peer = float(np.median(times[fastest]))
        for name, t in times.items():
            low, median, high = np.percentile(t, [10, 50, 90])
            rows.append(
                {
                    "case": case,
                    "state": state,
                    "form": name,
                    "ms": round(float(median), 4),
                    "p10": round(float(low), 4),
                    "p90": round(float(high), 4),
                    "min": round(float(t.min()), 4),
                    "ratio": round(peer / float(median), 2),
                    "fastest_torch": fastest,
                    "bytes": moved if name in ours or name in floor else None,
                }
            )
    return rows


@numba.njit(parallel=True, nogil=True)
def read(words: np.ndarray) -> int:
    total = 0
    for i in numba.prange(len(words)):
        total += words[i]
    return total


def to_numpy(x: torch.Tensor) -> np.ndarray:
    if x.dtype != torch.bfloat16:
        return x.numpy()
    import ml_dtypes

    return x.view(torch.int16).numpy().view(ml_dtypes.bfloat16)


def check_dense(ours: np.ndarray, peers: dict[str, Callable]) -> None:
    for name, form in peers.items():
        error = np.abs(form().float().numpy() - ours.astype(np.float32)).max()
        if error > 2e-2:
            raise AssertionError(f"{name} differs by {error}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    cases = ["32/8/32768", "32/8/131072", "32/32/32768"]
    parser.add_argument("--cases", nargs="+", default=cases, help="query heads/KV heads/tokens")
    parser.add_argument("--metric", nargs="+", default=["manhattan", "weighted"])
    parser.add_argument("--query-bits", nargs="+", type=int, default=[3, 4])
    parser.add_argument("--dtype", default="float32", choices=TORCH_DTYPES)
    parser.add_argument("--head-dim", type=int, default=128)
    parser.add_argument("--budget", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--fastest", type=int, default=2, help="forms of PyTorch kept; 0 keeps all")
    args = parser.parse_args()

    evict = np.ones(EVICT_BYTES // 8, np.int64)
    rows = []
    print(f"{'case':14} {'state':5} {'form':26} {'ms':>8} {'p10':>8} {'p90':>8} {'ratio':>7}")
    for case in args.cases:
        for row in run_case(case, args, evict):
            rows.append(row)
            moved = f"  {row['bytes'] / 1e6:.1f} MB" if row["bytes"] else ""
            print(
                f"{row['case']:14} {row['state']:5} {row['form']:26} {row['ms']:8.3f}"
                f" {row['p10']:8.3f} {row['p90']:8.3f} {row['ratio']:7.1f}{moved}",
                flush=True,
            )
    now = datetime.now(UTC)
    report = {
        "date": now.isoformat(timespec="seconds"),
        "device": processor(),
        "threads": numba.get_num_threads(),
        "torch_threads": torch.get_num_threads(),
        "versions": {
            "adamas_core": adamas_core.__version__,
            "numba": numba.__version__,
            "numpy": np.__version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
        "arguments": vars(args),
        "evict_bytes": EVICT_BYTES,
        "rows": rows,
    }
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"cpu_decode_{args.dtype}_{now:%Y%m%d_%H%M%S}.json"
    path.write_text(json.dumps(report, indent=1) + "\n")
    print(f"wrote {path}")


def processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor()


if __name__ == "__main__":
    main()
