"""What does a call cost before it has any work, and what does waking a thread cost?

    python benchmarks/cpu_call.py

Times `decode_attention` over one tile of 64 tokens with a budget of 1, on one thread: hot, and
cold, where the interpreter and the kernels come from memory. The same call without its kernels is
the part of Python. Also times an empty kernel on all threads: directly after another kernel, and
after --busy seconds of work by the caller alone, in which the other threads go to sleep.
"""

from __future__ import annotations

import argparse
import time
from functools import partial
from pathlib import Path

import numba
import numpy as np

from adamas_core import KVCache, decode_attention
from adamas_core.cpu import _engine
from harness import RESULTS, Form, Report, measure, statistics


@numba.njit(parallel=True, nogil=True)
def _nothing(seen):  # type: ignore[no-untyped-def]
    for i in numba.prange(len(seen)):
        seen[i] = i


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=50)
    parser.add_argument("--busy", type=float, default=0.01)
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    report = Report("cpu_call", ["name", "state", "ms", "p10", "p90"], args)
    rng = np.random.default_rng(0)
    k = rng.standard_normal((8, 64, 128), dtype=np.float32)
    q = rng.standard_normal((32, 1, 128), dtype=np.float32)
    cache = KVCache()
    cache.append(k, k)
    call = partial(decode_attention, q, cache, 1)
    run = _engine._run
    forms = {
        "decode_attention, 64 tokens": Form(call, partial(setattr, _engine, "_run", run)),
        "without kernels": Form(call, partial(setattr, _engine, "_run", lambda *_: None)),
    }
    for state in ("hot", "cold"):
        for name, taken in measure(forms, state, args.repeats).items():
            report.add(name=name, state=state, **statistics(taken))
    _engine._run = run
    seen = np.zeros(numba.get_num_threads(), np.int64)
    _nothing(seen)
    for state, pause in (("threads awake", 0.0), ("threads asleep", args.busy)):
        times = []
        for _ in range(args.repeats):
            _nothing(seen)
            until = time.perf_counter() + pause
            while (start := time.perf_counter()) < until:
                pass
            _nothing(seen)
            times.append(1e3 * (time.perf_counter() - start))
        report.add(name="a kernel of no work", state=state, **statistics(np.array(times)))
    report.write()


if __name__ == "__main__":
    main()
