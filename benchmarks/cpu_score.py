"""How long does scoring codes take on one core, and is it memory or arithmetic that bounds it?

    python benchmarks/cpu_score.py

Codes of one KV head, --tokens tokens (512K, 16.8 MB) at head_dim 128, for 1, 4 and 8 query heads:
streamed from memory, and one tile again and again from the first cache; beside a plain read of the
bytes.
"ns per group" is the time for a query head and 8 tokens, and "cycles" is that time at --ghz.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import Any

import numba
import numpy as np

from adamas_core.cpu._array import address_of
from adamas_core.cpu.kernels._jit import invoke
from adamas_core.cpu.kernels.score import query_bytes, score_tile
from harness import RESULTS, Form, Report, measure, statistics

P, RING = 2, 512  # words, tiles of distances that are kept
GAP = 2 * 64 * RING
COLUMNS = ["metric", "rows", "name", "ms", "p10", "p90", "ns per group", "cycles"]


@numba.njit(nogil=True)
def _score(function, high, low, tiles, tile_bytes, queries, rows, weights, distances):  # type: ignore[no-untyped-def]
    """A tile every `tile_bytes`: 0 scores the same one again."""
    for tile in range(tiles):
        at = tile_bytes * tile
        target = distances + 128 * (tile % RING)
        given = (high + at, low + at, queries, rows, P, weights, target, GAP)
        invoke(function, given)


@numba.njit(nogil=True)
def _read(words):  # type: ignore[no-untyped-def]
    total = 0
    for word in words:
        total += word
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=1 << 19)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--ghz", type=float, default=3.7, help="of the core (3.7)")
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    report = Report("cpu_score", COLUMNS, args)
    rng = np.random.default_rng(0)
    tiles = args.tokens // 64
    keys = rng.integers(0, 2**63, (2, tiles + 8, 8, P, 8), dtype=np.int64)
    distances = np.zeros(8 * GAP, np.uint8)
    for metric, weights in (("manhattan", 0), ("weighted", 3)):
        room = np.zeros(8 * query_bytes.py_func(P, weights) + 64, np.uint8)
        queries = (address_of(room) + 63) // 64 * 64
        for rows in (1, 4, 8):
            at = score_tile.address, address_of(keys[0]), address_of(keys[1]), tiles
            rest = queries, rows, weights, address_of(distances)
            words = keys[:, :tiles].reshape(-1)
            forms = {
                "from memory": Form(partial(_score, *at, 512 * P, *rest)),
                "from cache": Form(partial(_score, *at, 0, *rest)),
                "plain read": Form(partial(_read, words)),
            }
            for name, taken in measure(forms, "cold", args.repeats).items():
                row: dict[str, Any] = statistics(taken)
                if name != "plain read":
                    group = 1e6 * row["ms"] / (8 * tiles * rows)
                    row["ns per group"] = round(group, 2)
                    row["cycles"] = round(group * args.ghz, 1)
                report.add(metric=metric, rows=rows, name=name, **row)
    report.write()


if __name__ == "__main__":
    main()
