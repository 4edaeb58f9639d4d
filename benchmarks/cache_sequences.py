"""Does a KVCache equal a fresh one after any sequence of operations?

    python benchmarks/cache_sequences.py --sequences 20000

Runs random sequences of 4 to 12 operations each (`cache_model.run` of the tests): appends, ragged
ones too, refused appends, truncations, drafts, sequences that join and leave, and saves. Four in
ten operations are interrupted at a random bytecode. After each one all bits of the cache are
compared with those of a cache that never saw anything but the tokens that are left. A sequence is
known by its seed, and can be run again alone by --first and --sequences 1.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import time
import traceback
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from cache_model import run

from harness import RESULTS, Report

BATCH = 100  # sequences per task of a worker process


def batch(seeds: range) -> tuple[Counter[str], list[str]]:
    """What was done in some sequences, and the faults."""
    done: Counter[str] = Counter()
    faults = []
    for seed in seeds:
        try:
            done += run(seed)
        except Exception:
            faults.append(f"seed {seed}: {traceback.format_exc()}")
    return done, faults


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sequences", type=int, default=20_000)
    parser.add_argument("--first", type=int, default=0, help="the first seed (0)")
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    report = Report("cache_sequences", ["sequences", "first seed", "faults", "seconds"], args)
    begin, end = time.perf_counter(), args.first + args.sequences
    done: Counter[str] = Counter()
    faults: list[str] = []
    parts = [range(s, min(s + BATCH, end)) for s in range(args.first, end, BATCH)]
    with multiprocessing.get_context("spawn").Pool(args.processes) as pool:
        for i, (counts, found) in enumerate(pool.imap_unordered(batch, parts), 1):
            done += counts
            faults += found
            for fault in found:
                print(fault, file=sys.stderr)
            print(f"\r{i} of {len(parts)} batches, {len(faults)} faults", end="", flush=True)
    report.add(
        **{
            "sequences": args.sequences,
            "first seed": args.first,
            "faults": len(faults),
            "seconds": round(time.perf_counter() - begin),
            "operations": dict(sorted(done.items())),
            "first faults": faults[:20],
        }
    )
    report.write()


if __name__ == "__main__":
    main()
