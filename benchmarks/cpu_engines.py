"""Is the native library faster than Numba, which compiles the same kernels?

    python benchmarks/cpu_engines.py

Each engine has a process of its own with the same inputs. The two take turns, one step of
`decode_attention` at a time. harness.py says what cold and hot mean. "times" is how many times as
fast as Numba the library is.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from itertools import product
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

import inputs
from adamas_core import KVCache, Selection, decode_attention
from adamas_core.cpu._engine import CHOICE, LIBRARY, NUMBA
from harness import RESULTS, Form, Report, measure, statistics

CASES = ["32/8/1024", "32/8/32768", "32/8/131072", "32/32/32768"]
KINDS = {
    "plain codes": Selection(tail=0),
    "centered codes": Selection(tail=0),
    "with a tail": Selection(),
}


def serve(pipe: Connection, args: argparse.Namespace) -> None:
    """In a process of one engine: make the inputs of each case, and time steps on request."""
    cache = KVCache()
    q: Any = None
    kind = ""
    while (asked := pipe.recv()) is not None:
        if len(asked) == 2:  # a case, and the kind of codes
            case, kind = asked
            H, H_kv, S = map(int, case.split("/"))
            q, made = inputs.make("random", args.dtype, 1, H, H_kv, S, args.head_dim, 10**11)
            cache = KVCache(1, KINDS[kind], centered=kind != "plain codes", capacity=S)
            cache.append(made[0].k, made[0].v)
            pipe.send(None)
        else:
            step = Form(partial(decode_attention, q, cache, args.budget))
            (state,) = asked
            pipe.send(float(measure({kind: step}, state, 1)[kind][0]))


@contextmanager
def engine(name: str, args: argparse.Namespace) -> Iterator[Connection]:
    """A process whose CPU backend runs by this engine."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    os.environ[CHOICE] = name
    process = context.Process(target=serve, args=(there, args), daemon=True)
    process.start()
    del os.environ[CHOICE]
    there.close()
    try:
        yield here
    finally:
        here.send(None)
        process.join()


def in_turns(engines: dict[str, Connection], state: str, repeats: int) -> dict[str, list[float]]:
    """Milliseconds of the steps of each engine."""
    times: dict[str, list[float]] = {name: [] for name in engines}
    for _ in range(repeats):
        for name, pipe in engines.items():
            pipe.send((state,))
            times[name].append(pipe.recv())
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", nargs="+", default=CASES, help="H/H_kv/S")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--head-dim", type=int, default=128)
    parser.add_argument("--budget", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=60)
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    columns = ["heads", "tokens", "codes", "state", "engine", "ms", "p10", "p90", "min", "times"]
    report = Report("cpu_engines", columns, args)
    with engine(LIBRARY, args) as library, engine(NUMBA, args) as numba:
        engines = {LIBRARY: library, NUMBA: numba}
        for case, kind in product(args.cases, KINDS):
            for pipe in engines.values():
                pipe.send((case, kind))
                pipe.recv()
            heads, _, tokens = case.rpartition("/")
            for state in ("cold", "hot"):
                times = in_turns(engines, state, args.repeats)
                of_numba = float(np.median(times[NUMBA]))
                for name, each in times.items():
                    row = statistics(np.array(each))
                    report.add(
                        heads=heads, tokens=int(tokens), codes=kind, state=state, engine=name,
                        times=round(of_numba / row["ms"], 2), **row,
                    )  # fmt: skip
    report.write()


if __name__ == "__main__":
    main()
