"""A decode step on a GPU, next to dense attention, and its parts, next to their bounds.

    python benchmarks/gpu_decode.py --tokens 32768 --batch 1 16
    python benchmarks/gpu_decode.py --short
    python benchmarks/gpu_decode.py --report benchmarks/results/gpu_decode_2027-01-01.json
    python benchmarks/gpu_decode.py --dry

The first command writes JSON into benchmarks/results, and next to it a table and a plot of the time
over the tokens. The second measures six shapes in about three minutes. The third writes the table
and the plot again, from the JSON.

Every time is the median over replays of one CUDA graph, between CUDA events. A graph holds at least
16 calls, so that its launch from the host does not count. The inputs rotate through several caches
whose codes together exceed the L2 cache, as the layers of a model do. A shape that does not fit the
memory, and a form that a peer refuses, are printed with the reason. `--dry` runs the same path on a
CPU, through the shim of the tests, with a temporary folder, and tiny sizes where none are given. It
shows that the script works, and measures no time.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from adamas_core import Selection
from adamas_core.gpu import _launch
from adamas_core.gpu._arrays import sequence_lengths
from adamas_core.gpu._softmax import weights_of
from adamas_core.gpu.decode_step import DecodeStep, DeviceCache, device_cache, fill
from adamas_core.gpu.quantize import code_query, empty_coded_query
from adamas_core.gpu.select import make_plan, select_coded
from adamas_core.gpu.tail import choose_tiers, make_room

RESULTS = Path(__file__).parent / "results"
HEAD_DIM = 128
TAIL = 1024  # tokens of the coded tier
FLOAT16 = np.dtype(np.float16)
THRESHOLDS = np.array([-1, 0, 1], np.float32)  # about 0.996 rms of the normal keys below
ROTATED = 256 << 20  # bytes of codes to read before a cache is used again; an H200's L2 has 60 MB
GROWTH = 1024  # room for appended tokens; all calls of one cache together append fewer
ROOM = 0.8  # share of the free memory that the caches of a shape may take
CALLS = 16  # at least, in a graph
SECONDS = 0.3  # of replays per measurement, at most; and at least 5 replays
SHORT = [  # query heads, KV heads, batch, tokens
    (32, 32, 1, 2**15),
    (32, 8, 1, 2**15),
    (32, 32, 1, 2**17),
    (32, 8, 1, 2**17),
    (32, 8, 16, 2**17),
    (32, 32, 16, 2**17),
]
DRY = {"tokens": [100, 200], "batch": [1, 2], "budget": [16], "heads": ["2/2", "4/1"]}
BACKENDS = ("FLASH_ATTENTION", "CUDNN_ATTENTION", "EFFICIENT_ATTENTION")  # of torch's SDPA
PACKAGES = ("adamas-core", "cupy-cuda12x", "cupy-cuda13x", "torch", "flashinfer-python")


class Shape(NamedTuple):
    """The sizes, the metric and the codes of one line of the result."""

    batch: int
    heads: int
    kv_heads: int
    tokens: int
    budget: int
    metric: str
    codes: str  # "tail", "centered" or "plain"; a tail has centered codes

    @property
    def code_bytes(self) -> int:
        """Bytes that a selection must read: 2 bits per coordinate of every key.

        For centered codes also a byte of scale per token and a mean in float16 per 64 tokens.
        """
        per_token = HEAD_DIM // 4 + (1 + 2 * HEAD_DIM // 64 if self.codes != "plain" else 0)
        return self.batch * self.kv_heads * self.tokens * per_token

    @property
    def step_bytes(self) -> int:
        """Bytes that a step must read: the codes, and the chosen rows of k and v, float16.

        This is an upper bound, because the query heads of a group may choose the same rows. With a
        tail also three bits of all candidates, and codes of values.
        """
        per_query = 4 * self.budget * HEAD_DIM
        if self.codes == "tail":
            tail = min(TAIL, self.tokens - self.budget)
            per_query += (self.budget + tail) * (3 * HEAD_DIM // 8 + 1)
            per_query += tail * (HEAD_DIM // 4 + 1)
        return self.code_bytes + self.batch * self.heads * per_query

    @property
    def selection(self) -> Selection:
        """The options of a step."""
        return Selection(metric=self.metric, tail=TAIL if self.codes == "tail" else 0)

    @property
    def dense_bytes(self) -> int:
        """Bytes that dense attention must read: all of k and v, float16."""
        return 4 * self.batch * self.kv_heads * self.tokens * HEAD_DIM

    def layers(self, rotated: int) -> int:
        """Caches whose codes together have `rotated` bytes."""
        return max(1, min(-(-rotated // self.code_bytes), 64))


# Milliseconds per call of several calls, each on its own input; None if no time was measured.
Timer = Callable[[list[Callable[[], Any]]], float | None]


def untimed(calls: list[Callable[[], Any]]) -> None:
    """Only make the calls."""
    for call in calls:
        call()


def enough(calls: list[Callable[[], Any]]) -> list[Callable[[], Any]]:
    """The calls, repeated until they are enough for a graph."""
    return calls * -(-CALLS // len(calls))


def median_of_replays(replay: Callable[[], float], most: int) -> float:
    """Median of the milliseconds of up to `most` replays, after two that are not counted."""
    replay()
    first = max(replay(), 1e-3)
    count = int(min(max(1e3 * SECONDS / first, 5), most))
    return statistics.median(replay() for _ in range(count))


class Clock:
    """Milliseconds per call of calls that are captured as one graph, each on its own input."""

    def __init__(self, xp: Any, replays: int) -> None:
        self._xp, self._replays = xp, replays

    def __call__(self, calls: list[Callable[[], Any]]) -> float:
        cuda = self._xp.cuda
        calls = enough(calls)
        cuda.get_current_stream().synchronize()  # the inputs are complete for the other stream
        stream = cuda.Stream(non_blocking=True)
        with stream:
            for call in calls:  # compiles the kernels and allocates all workspaces
                call()
            stream.synchronize()
            stream.begin_capture()
            for call in calls:
                call()
            graph = stream.end_capture()

            def replay() -> float:
                start, end = cuda.Event(), cuda.Event()
                start.record()
                graph.launch(stream)
                end.record()
                end.synchronize()
                return float(cuda.get_elapsed_time(start, end))

            return median_of_replays(replay, self._replays) / len(calls)


def torch_clock(torch: Any, replays: int) -> Timer:
    """A timer like `Clock` for calls of torch."""

    def time(calls: list[Callable[[], Any]]) -> float:
        calls = enough(calls)
        side = torch.cuda.Stream()
        with torch.cuda.stream(side):
            for call in calls[:2]:
                call()
        side.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for call in calls:
                call()

        def replay() -> float:
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            graph.replay()
            end.record()
            end.synchronize()
            return float(start.elapsed_time(end))

        return median_of_replays(replay, replays) / len(calls)

    return time


def normal(xp: Any, seed: int, size: tuple[int, ...]) -> Any:
    """Random float16 numbers. Each array has a seed of its own."""
    return xp.random.default_rng(seed).standard_normal(size, dtype=np.float32).astype(np.float16)


def filled(xp: Any, shape: Shape, seed: int) -> DeviceCache:
    """A cache of normal keys and values, with room for the tokens that the steps append."""
    thresholds = THRESHOLDS if shape.codes == "plain" else None
    sizes = shape.batch, shape.kv_heads, HEAD_DIM, FLOAT16, shape.tokens + GROWTH
    cache = device_cache(*sizes, thresholds, tail=shape.codes == "tail")
    for i, x in enumerate((cache.k, cache.v)):
        for b in range(shape.batch):  # one at a time, because the numbers are float32 first
            x[b] = normal(xp, (seed * 2 + i) * shape.batch + b, x.shape[1:])
    fill(cache, *(x[:, :, : shape.tokens - 1] for x in (cache.k, cache.v)))
    return cache


def measure(xp: Any, shape: Shape, clock: Timer, rotated: int, torch: Any) -> dict[str, Any]:
    """All times of one shape, in milliseconds, on inputs of at least `rotated` bytes."""
    B, H, H_kv, S, K, *_ = shape
    layers = shape.layers(rotated)
    caches = [filled(xp, shape, i) for i in range(layers)]
    q = normal(xp, 10**6, (B, H, 1, HEAD_DIM))
    k = normal(xp, 10**6 + 1, (B, H_kv, 1, HEAD_DIM))
    selection = shape.selection
    step = DecodeStep(H, 1, caches[0], K, selection)

    query = empty_coded_query(q.shape, selection, caches[0].codes)
    code_query(q, caches[0].thresholds, H_kv, selection, query)
    plan = make_plan(selection, caches[0].codes, H // H_kv, S, K)
    room = None
    if selection.tail:
        room = make_room(selection, caches[0].codes, q.shape, HEAD_DIM, S, K)
    weights = weights_of(None, HEAD_DIM)
    indices = xp.empty((B, H, 1, K), np.int32)
    counts = sequence_lengths(S)

    def select(cache: DeviceCache) -> None:
        if room is None:
            select_coded(query, cache.codes, counts, plan, indices, selection)
        else:
            choose_tiers(query, cache.codes, counts, room, selection, weights)

    copies = [xp.empty_like(cache.planes) for cache in caches]

    def copy(i: int) -> None:
        copies[i][...] = caches[i].planes

    ours = {
        "step": [lambda c=c: step(q, k, k, c) for c in caches],
        "selection": [lambda c=c: select(c) for c in caches],
        "copy_of_codes": [lambda i=i: copy(i) for i in range(layers)],
    }
    times = {name: clock(calls) for name, calls in ours.items()}
    if torch is not None:
        peers(torch, caches, q, shape, times, torch_clock(torch, 50))
    return {**shape._asdict(), "layers": layers, "ms": times}


def peers(
    torch: Any,
    caches: list[DeviceCache],
    q: Any,
    shape: Shape,
    times: dict[str, float | None],
    time: Timer,
) -> None:
    """Add the times of dense attention in all installed forms, and of an exact torch.topk."""
    attention = torch.nn.attention
    tq = torch.from_dlpack(q)
    pairs = [[torch.from_dlpack(x)[:, :, : shape.tokens] for x in (c.k, c.v)] for c in caches]
    G = shape.heads // shape.kv_heads
    sdpa = torch.nn.functional.scaled_dot_product_attention

    def grouped(k: Any, v: Any) -> Any:
        """The G heads of a group as G queries of one head, which need no mask at L = 1."""
        return sdpa(tq.reshape(shape.batch, shape.kv_heads, G, HEAD_DIM), k, v)

    forms = {"gqa": lambda k, v: sdpa(tq, k, v, enable_gqa=G > 1), "grouped": grouped}
    if G == 1:
        del forms["grouped"]  # the same call

    def add(name: str, calls: list[Callable[[], Any]]) -> None:
        try:
            times[name] = time(calls)
        except RuntimeError as error:  # a form that the peer refuses, or no memory
            times[name] = None
            print(f"no time of {name}: {str(error).splitlines()[0]}", flush=True)
            torch.cuda.synchronize()

    for (form, call), backend in product(forms.items(), BACKENDS):
        with attention.sdpa_kernel(getattr(attention.SDPBackend, backend)):
            calls = [lambda k=k, v=v, call=call: call(k, v) for k, v in pairs]
            add(f"dense_sdpa_{form}_{backend.lower()}", calls)
    if shape.batch == 1 and find_spec("flashinfer"):
        import flashinfer

        single = flashinfer.single_decode_with_kv_cache
        add(
            "dense_flashinfer",
            [lambda k=k, v=v: single(tq[0, :, 0], k[0], v[0], kv_layout="HND") for k, v in pairs],
        )

    def exact_topk(k: Any) -> Any:
        by_head = tq.reshape(shape.batch, shape.kv_heads, G, HEAD_DIM)
        return torch.topk(by_head @ k.transpose(-1, -2), shape.budget)

    add("torch_topk_of_exact_scores", [lambda k=k: exact_topk(k) for k, _ in pairs])


@contextmanager
def device(dry: bool) -> Iterator[Any]:
    """The array module: CuPy, or its stand-in in a dry run."""
    if not dry:
        yield _launch.device().xp
        return
    sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
    from cuda_on_cpu import machine

    with machine.installed() as cpu:
        yield cpu.xp


def versions() -> dict[str, str]:
    """Versions of the installed packages."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


class Line(NamedTuple):
    """One line of the table. A time is None if it was not measured."""

    shape: Shape
    step: float | None
    dense: float | None  # of the fastest dense peer
    dense_name: str
    selection: float | None
    copy: float | None  # of the codes: read and write

    @property
    def speedup(self) -> float | None:
        return self.dense / self.step if self.dense and self.step else None

    @property
    def selection_of_copy(self) -> float | None:
        """The bandwidth of the selection, which reads the codes, divided by that of the copy."""
        return self.copy / 2 / self.selection if self.copy and self.selection else None


def shape_of(result: dict[str, Any]) -> Shape:
    """The shape of a result in the JSON."""
    return Shape(*(result[field] for field in Shape._fields))


def line(result: dict[str, Any]) -> Line:
    """The line of one shape in the JSON."""
    ms = result["ms"]
    dense = [(t, name) for name, t in ms.items() if name.startswith("dense_") and t is not None]
    fastest, name = min(dense, default=(None, ""))
    shape = shape_of(result)
    return Line(shape, ms["step"], fastest, name, ms["selection"], ms["copy_of_codes"])


def shown(x: float | None, form: str) -> str:
    return "-" if x is None else format(x, form)


def table(about: dict[str, Any], lines: list[Line]) -> str:
    """All lines in Markdown."""
    rows = [
        f"{about['device']}, {about['date']}; median ms of the step of one layer.",
        "",
        "| heads | batch | tokens | budget | metric | codes | step | fastest dense | times as fast "
        "| selection | of copy bandwidth | MB of a step | MB dense |",
        "| --- | ---: | ---: | ---: | --- | --- | ---: | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for x in lines:
        s = x.shape
        rows.append(
            f"| {s.heads}/{s.kv_heads} | {s.batch} | {s.tokens} | {s.budget} | {s.metric} "
            f"| {s.codes} | {shown(x.step, '.4f')} | {shown(x.dense, '.4f')} {x.dense_name} "
            f"| {shown(x.speedup, '.1f')} | {shown(x.selection, '.4f')} "
            f"| {shown(x.selection_of_copy, '.0%')} | {s.step_bytes / 1e6:.1f} "
            f"| {s.dense_bytes / 1e6:.1f} |"
        )
    return "\n".join(rows) + "\n"


def plot(lines: list[Line], path: Path) -> None:
    """Time over tokens, of the step and of the fastest dense peer; one panel per pair of heads."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    budget = 128 if any(x.shape.budget == 128 for x in lines) else lines[0].shape.budget
    form = lines[0].shape[5:]  # the metric and the codes that stand first
    lines = [x for x in lines if x.shape[5:] == form]
    lines = [x for x in lines if x.shape.budget == budget]
    panels = sorted({(x.shape.heads, x.shape.kv_heads) for x in lines})
    figure, axes = plt.subplots(
        1, len(panels), figsize=(6 * len(panels), 4.5), layout="constrained", squeeze=False
    )
    for heads, panel in zip(panels, axes[0], strict=True):
        here = sorted(x for x in lines if (x.shape.heads, x.shape.kv_heads) == heads)
        for i, batch in enumerate(sorted({x.shape.batch for x in here})):
            own = [x for x in here if x.shape.batch == batch]
            step = [(x.shape.tokens, x.step) for x in own if x.step is not None]
            dense = [(x.shape.tokens, x.dense) for x in own if x.dense is not None]
            for name, points, style in ("step", step, "o-"), ("fastest dense", dense, "s--"):
                if points:
                    label = f"batch {batch}, {name}"
                    panel.loglog(*zip(*points, strict=True), style, color=f"C{i}", label=label)
                    panel.set_xscale("log", base=2)
                    panel.legend(fontsize="small")
        panel.set(title=f"{heads[0]}/{heads[1]} heads, budget {budget}", xlabel="tokens")
        panel.set_ylabel("ms")
    figure.savefig(path)
    plt.close(figure)


def report(path: Path) -> None:
    """Write the table and the plot of a JSON file, next to it."""
    about = json.loads(path.read_text())
    lines = [line(result) for result in about["results"]]
    path.with_suffix(".md").write_text(table(about, lines))
    if find_spec("matplotlib") is None:
        print('no plot: matplotlib is in the extra "bench"')
    else:
        plot(lines, path.with_suffix(".svg"))


def main(arguments: list[str] | None = None) -> None:
    """Measure the shapes of the arguments that fit into memory, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--tokens", type=int, nargs="+", default=[2**n for n in range(12, 21, 2)] + [2**15, 2**17]
    )
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 4, 16, 64])
    parser.add_argument("--budget", type=int, nargs="+", default=[64, 128, 256, 1024])
    parser.add_argument("--metric", nargs="+", default=["weighted", "manhattan"])
    parser.add_argument("--codes", nargs="+", default=["tail", "centered", "plain"])
    parser.add_argument("--heads", nargs="+", default=["32/32", "32/8"], help="query/KV heads")
    parser.add_argument("--short", action="store_true", help="six shapes, budget 128, weighted")
    parser.add_argument("--replays", type=int, default=50)
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    parser.add_argument("--report", type=Path, metavar="JSON", help="only its table and plot")
    parser.add_argument("--dry", action="store_true")
    options = parser.parse_args(arguments)
    if options.report:
        report(options.report)
    elif options.dry:
        parser.set_defaults(**DRY)
        options = parser.parse_args(arguments)
        with tempfile.TemporaryDirectory() as folder, device(dry=True) as xp:
            options.out = Path(folder)
            path = run(options, xp, untimed, 0, None, {"device": "the tests' shim"})
            print(path.with_suffix(".md").read_text())
        print("dry: every shape ran through the shim; no time was measured")
    else:
        with device(dry=False) as xp:
            torch = None
            try:
                import torch
            except ImportError:
                print("torch is not installed: no peers")
            properties = xp.cuda.runtime.getDeviceProperties(xp.cuda.Device().id)
            about = {
                "device": properties["name"].decode(),
                "driver": xp.cuda.runtime.driverGetVersion(),
            }
            print(run(options, xp, Clock(xp, options.replays), ROTATED, torch, about))


def run(
    options: argparse.Namespace,
    xp: Any,
    clock: Timer,
    rotated: int,
    torch: Any,
    about: dict[str, Any],
) -> Path:
    """Measure, and write each result at once. Returns the path of the JSON."""
    results = []
    for shape in shapes(options):
        if rotated:  # not in a dry run
            xp.get_default_memory_pool().free_all_blocks()
            if torch is not None:
                torch.cuda.empty_cache()
            needed = shape.layers(rotated) * (shape.dense_bytes + 2 * shape.code_bytes)
            free, _ = xp.cuda.runtime.memGetInfo()
            if needed > ROOM * free:
                print(
                    f"skipped {shape}: {needed / 1e9:.0f} GB of {free / 1e9:.0f} free", flush=True
                )
                continue
        sizes = shape[:5]  # the peers read no codes: their times are taken from the line before
        before = [r for r in results if shape_of(r)[:5] == sizes]
        results.append(measure(xp, shape, clock, rotated, None if before else torch))
        for name, ms in before[0]["ms"].items() if before else ():
            results[-1]["ms"].setdefault(name, ms)
        print(json.dumps(results[-1]), flush=True)
        write(options.out, about, results)
    return write(options.out, about, results)


def shapes(options: argparse.Namespace) -> list[Shape]:
    """The shapes of the arguments."""
    if options.short:
        return [
            Shape(B, H, H_kv, S, 128, "weighted", codes)
            for H, H_kv, B, S in SHORT
            for codes in options.codes
        ]
    return [
        Shape(batch, *map(int, heads.split("/")), tokens, budget, metric, codes)
        for heads, batch, tokens, budget, metric, codes in product(
            *(options.heads, options.batch, options.tokens, options.budget, options.metric),
            options.codes,
        )
        if budget <= tokens and (metric == "weighted" or codes == "plain")
    ]


def write(out: Path, about: dict[str, Any], results: list[dict[str, Any]]) -> Path:
    """Write the JSON of the results so far, its table and its plot. Returns the JSON's path."""
    out.mkdir(exist_ok=True, parents=True)
    today = date.today().isoformat()
    path = out / f"gpu_decode_{today}.json"
    whole = {**about, "versions": versions(), "date": today, "results": results}
    path.write_text(json.dumps(whole, indent=1) + "\n")
    report(path)
    return path


if __name__ == "__main__":
    main()
