"""A decode step on a GPU against dense attention, and its parts against what bounds them.

    python benchmarks/gpu_decode.py --tokens 32768 --batch 1 16
    python benchmarks/gpu_decode.py --dry

Every figure is the median over replays of one CUDA graph, between CUDA events. The inputs rotate
through several caches whose bytes exceed the L2 cache, as the layers of a model do. Peers that are
not installed, or refuse a form, are left out and named in the result. `--dry` runs the same path
through the tests' shim on a CPU, on tiny sizes: it shows that the script works, and reports no
time.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from adamas_core import gpu
from adamas_core.gpu import _launch
from adamas_core.gpu.decode import DecodeStep, DeviceCache, device_cache
from adamas_core.gpu.quantize import encode_query
from adamas_core.gpu.select import plan, select_coded

RESULTS = Path(__file__).parent / "results"
HEAD_DIM = 128
THRESHOLDS = np.array([-1, 0, 1], np.float32)  # about 0.996 rms of the normal keys below
ROTATED = 256 << 20  # bytes to touch before an input comes again; an H200's L2 holds 50 MB
ROOM = 60 << 30  # bytes of keys and values that a shape may take
PACKAGES = ("adamas-core", "cupy-cuda12x", "cupy-cuda13x", "torch", "flashinfer-python")


class Shape(NamedTuple):
    """One line of the result."""

    batch: int
    heads: int
    kv_heads: int
    tokens: int
    budget: int
    metric: str


Timer = Callable[[list[Callable[[], Any]]], float | None]


class Clock:
    """Times calls, each on an input of its own, as one captured graph; milliseconds a call."""

    def __init__(self, xp: Any, replays: int) -> None:
        self._xp, self._replays = xp, replays

    def __call__(self, calls: list[Callable[[], Any]]) -> float:
        cuda = self._xp.cuda
        stream = cuda.Stream(non_blocking=True)
        with stream:
            for call in calls:  # compiles, and settles every workspace
                call()
            stream.synchronize()
            stream.begin_capture()
            for call in calls:
                call()
            graph = stream.end_capture()
            times = []
            for _ in range(self._replays + 3):
                start, end = cuda.Event(), cuda.Event()
                start.record()
                graph.launch(stream)
                end.record()
                end.synchronize()
                times.append(cuda.get_elapsed_time(start, end) / len(calls))
        return statistics.median(times[3:])


def torch_clock(torch: Any, replays: int) -> Timer:
    """The same for torch's calls; None where a call cannot be captured or is refused."""

    def time(calls: list[Callable[[], Any]]) -> float | None:
        try:
            side = torch.cuda.Stream()
            with torch.cuda.stream(side):
                for call in calls:
                    call()
            side.synchronize()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                for call in calls:
                    call()
            times = []
            for _ in range(replays + 3):
                start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
                start.record()
                graph.replay()
                end.record()
                end.synchronize()
                times.append(start.elapsed_time(end) / len(calls))
        except RuntimeError:  # a backend that does not take this form
            return None
        return statistics.median(times[3:])

    return time


def normal(xp: Any, size: tuple[int, ...]) -> Any:
    """Random float16 numbers."""
    return xp.random.default_rng(0).standard_normal(size, dtype=np.float32).astype(np.float16)


def filled(xp: Any, shape: Shape, capacity: int) -> DeviceCache:
    """A cache of normal keys and values whose last token is still to come."""
    cache = device_cache(
        shape.batch, shape.kv_heads, HEAD_DIM, np.dtype(np.float16), capacity, THRESHOLDS
    )
    for x in (cache.k, cache.v):
        for b in range(shape.batch):  # a sequence at a time: the numbers are float32 first
            x[b] = normal(xp, x.shape[1:])
    gpu.encode(cache.k, cache.thresholds, cache.planes, 0)
    return cache


def measure(xp: Any, shape: Shape, clock: Clock | None, torch: Any) -> dict[str, Any]:
    """Every time of one shape, in milliseconds; without a clock each call is only made."""
    B, H, H_kv, S, K, metric = shape
    layer_bytes = 4 * B * H_kv * S * HEAD_DIM
    layers = 2 if clock is None else max(2, min(-(-ROTATED // layer_bytes), 64))
    caches = [filled(xp, shape, S) for _ in range(layers)]
    q = normal(xp, (B, H, 1, HEAD_DIM))
    k = normal(xp, (B, H_kv, 1, HEAD_DIM))
    step = DecodeStep(H, 1, caches[0], K, metric)

    # A replay must not outgrow the cache: the appended token overwrites the last one each time.
    lengths = xp.full((B,), S - 1, np.int32)

    def whole(cache: DeviceCache) -> None:
        cache.lengths[...] = lengths
        step(q, k, k, cache)

    query = encode_query(q, caches[0].thresholds, H_kv, metric)
    P = caches[0].planes.shape[5]
    cut = plan(metric, query.shape[-1], P, B, H_kv, H // H_kv, S, K)
    indices = xp.empty((B, H, 1, K), np.int32)

    def selection(cache: DeviceCache) -> None:
        select_coded(query, cache.planes, None, S, cut, indices, 0, 0)

    copies = [xp.empty_like(cache.planes) for cache in caches]

    def copy(i: int) -> None:
        copies[i][...] = caches[i].planes

    ours = {
        "step": [lambda c=c: whole(c) for c in caches],
        "selection": [lambda c=c: selection(c) for c in caches],
        "copy_of_codes": [lambda i=i: copy(i) for i in range(layers)],
    }
    times: dict[str, float | None] = {}
    for name, calls in ours.items():
        if clock is None:
            for call in calls:
                call()
        else:
            times[name] = clock(calls)
    result: dict[str, Any] = {**shape._asdict(), "layers": layers, "ms": times}
    if clock is not None and torch is not None:
        peers(torch, caches, q, shape, times, torch_clock(torch, 50))
        dense = [t for name, t in times.items() if name.startswith("dense") and t is not None]
        if dense:
            result["speedup"] = min(dense) / times["step"]  # type: ignore[operator]
    if clock is not None:
        result["selection_of_copy"] = times["copy_of_codes"] / times["selection"] / 2  # type: ignore[operator]
    return result


def peers(
    torch: Any,
    caches: list[DeviceCache],
    q: Any,
    shape: Shape,
    times: dict[str, float | None],
    time: Timer,
) -> None:
    """Dense attention in every form that is installed, and torch.topk on exact scores."""
    attention = torch.nn.attention
    tq = torch.from_dlpack(q)
    pairs = [(torch.from_dlpack(c.k), torch.from_dlpack(c.v)) for c in caches]
    G = shape.heads // shape.kv_heads
    sdpa = torch.nn.functional.scaled_dot_product_attention

    def grouped(k: Any, v: Any) -> Any:
        """The G heads of a group as so many queries of one head, which have no mask at L = 1."""
        return sdpa(tq.reshape(shape.batch, shape.kv_heads, G, HEAD_DIM), k, v)

    forms = {
        "gqa": lambda k, v: sdpa(tq, k, v, enable_gqa=G > 1),
        "grouped": grouped,
    }
    for (form, call), backend in product(forms.items(), attention.SDPBackend.__members__):
        if backend in ("ERROR", "OVERRIDEABLE"):
            continue
        with attention.sdpa_kernel(getattr(attention.SDPBackend, backend)):
            times[f"dense_sdpa_{form}_{backend.lower()}"] = time(
                [lambda k=k, v=v, call=call: call(k, v) for k, v in pairs]
            )
    if shape.batch == 1:
        try:
            import flashinfer
        except ImportError:
            pass
        else:
            single = flashinfer.single_decode_with_kv_cache
            times["dense_flashinfer"] = time(
                [
                    lambda k=k, v=v: single(tq[0, :, 0], k[0], v[0], kv_layout="HND")
                    for k, v in pairs
                ]
            )

    def exact_topk(k: Any) -> Any:
        by_head = tq.reshape(shape.batch, shape.kv_heads, G, HEAD_DIM)
        return torch.topk(by_head @ k.transpose(-1, -2), shape.budget)

    times["torch_topk_of_exact_scores"] = time([lambda k=k: exact_topk(k) for k, _ in pairs])


@contextmanager
def device(dry: bool) -> Iterator[Any]:
    """The array module to run on."""
    if not dry:
        yield _launch.device().xp
        return
    sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
    from cuda_on_cpu import machine

    with machine.installed():
        yield np


def versions() -> dict[str, str]:
    """Of the packages that are there."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def plot(results: list[dict[str, Any]], path: Path) -> None:
    """Speedup over the fastest dense peer against the tokens, a line a batch and grouping."""
    import matplotlib.pyplot as plt

    lines: dict[str, list[tuple[int, float]]] = {}
    for r in results:
        if "speedup" in r and r["metric"] == "weighted" and r["budget"] == 128:
            name = f"batch {r['batch']}, {r['heads']}/{r['kv_heads']} heads"
            lines.setdefault(name, []).append((r["tokens"], r["speedup"]))
    if not lines:
        return
    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    for name, points in lines.items():
        axes.plot(*zip(*sorted(points), strict=True), marker="o", label=name)
    axes.set(xscale="log", xlabel="tokens", ylabel="times as fast as the fastest dense attention")
    axes.set_xscale("log", base=2)
    axes.axhline(1, color="gray", linewidth=0.8)
    axes.legend()
    figure.savefig(path)


def main() -> None:
    """Measure the shapes that the arguments ask for and that fit, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--tokens", type=int, nargs="+", default=[2**n for n in range(12, 21, 2)] + [2**15, 2**17]
    )
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 4, 16, 64])
    parser.add_argument("--budget", type=int, nargs="+", default=[64, 128, 256, 1024])
    parser.add_argument("--metric", nargs="+", default=["weighted", "manhattan"])
    parser.add_argument("--heads", nargs="+", default=["32/32", "32/8"], help="query/KV heads")
    parser.add_argument("--replays", type=int, default=50)
    parser.add_argument("--dry", action="store_true")
    options = parser.parse_args()
    if options.dry:
        options.tokens, options.batch, options.budget = [200], [1, 2], [16]
        options.heads = ["2/2", "4/1"]

    results = []
    with device(options.dry) as xp:
        torch = None
        if not options.dry:
            try:
                import torch
            except ImportError:
                print("torch is not installed: no peers")
        for heads, batch, tokens, budget, metric in product(
            options.heads, options.batch, options.tokens, options.budget, options.metric
        ):
            H, H_kv = map(int, heads.split("/"))
            shape = Shape(batch, H, H_kv, tokens, budget, metric)
            if budget > tokens or 8 * batch * H_kv * tokens * HEAD_DIM > ROOM:
                continue
            clock = None if options.dry else Clock(xp, options.replays)
            results.append(measure(xp, shape, clock, torch))
            print(json.dumps(results[-1]), flush=True)
        if options.dry:
            print(f"dry: {len(results)} shapes ran through the shim; no time was taken")
            return
        properties = xp.cuda.runtime.getDeviceProperties(xp.cuda.Device().id)
        about = {
            "device": properties["name"].decode(),
            "driver": xp.cuda.runtime.driverGetVersion(),
            "versions": versions(),
            "date": date.today().isoformat(),
        }
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"gpu_decode_{about['date']}.json"
    path.write_text(json.dumps({**about, "results": results}, indent=1) + "\n")
    plot(results, path.with_suffix(".svg"))
    print(path)


if __name__ == "__main__":
    main()
