"""How fast can rows of keys and values be gathered, and how near is `attend`?

    python benchmarks/cpu_gather.py

Each of 32 query heads reads rows of its own, in ascending order, of 8 KV heads' keys and then
values of --tokens tokens (128K), head_dim 128. `gather` only adds the rows up, each asked for 1 to
32 rows ahead: the best of these is the floor of `attend`, which computes attention of the same
rows. Cold.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from adamas_core import attend
from adamas_core.cpu.kernels._simd import prefetch
from harness import RESULTS, Floor, Form, Report, measure, statistics

H, H_KV, D = 32, 8, 128
ROW_BYTES = 4 * D


@numba.njit(parallel=True, nogil=True)
def _gather(k, v, tokens, out, ahead):  # type: ignore[no-untyped-def]
    for h in numba.prange(len(tokens)):
        sums = np.zeros(D, np.float32)
        for rows in (k[h // (H // H_KV)], v[h // (H // H_KV)]):
            first = rows.ctypes.data
            for i in range(tokens.shape[1]):
                following = tokens[h, min(i + ahead, tokens.shape[1] - 1)]
                for line in range(0, ROW_BYTES, 64):
                    prefetch(first + ROW_BYTES * following + line)
                row = rows[tokens[h, i]]
                for d in range(D):
                    sums[d] += row[d]
        out[h] = sums.sum()


def rows_of(rng: np.random.Generator, S: int, budget: int) -> NDArray[np.int32]:
    """(1, H, 1, budget): for each head a random set of S rows, ascending."""
    sets = [np.sort(rng.choice(S, budget, replace=False)) for _ in range(H)]
    return np.array(sets, np.int32).reshape(1, H, 1, budget)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=1 << 17)
    budgets = [64, 128, 256, 512, 1024, 4096]
    parser.add_argument("--budgets", nargs="+", type=int, default=budgets)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    report = Report("cpu_gather", ["budget", "name", "ms", "p10", "p90", "GB/s"], args)
    rng = np.random.default_rng(0)
    k, v = (np.ones((1, H_KV, args.tokens, D), np.float32) for _ in range(2))
    q, out = np.ones((1, H, 1, D), np.float32), np.empty(H, np.float32)
    for budget in args.budgets:
        tokens = rows_of(rng, args.tokens, budget)
        nbytes = 2 * H * budget * ROW_BYTES
        forms: dict[str, Form] = {
            f"gather, {ahead} ahead": Form(
                partial(_gather, k[0], v[0], tokens[0, :, 0], out, ahead)
            )
            for ahead in (1, 4, 16, 32)
        }
        forms["attend"] = Form(partial(attend, q, k, v, tokens))
        forms["plain read"] = Floor(nbytes).form(nbytes)
        times = measure(forms, "cold", args.repeats)
        for name, taken in times.items():
            row: dict[str, Any] = statistics(taken)
            rate = round(nbytes / 1e6 / float(np.median(taken)), 1)
            report.add(budget=budget, name=name, **row, **{"GB/s": rate})
    report.write()


if __name__ == "__main__":
    main()
