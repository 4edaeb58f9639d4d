"""Does every reader of files answer random damage with one clear error, in little time and memory?

    python benchmarks/readers_fuzz.py --cases 20000

Damages a small valid file of each kind (`READERS` and `mutated` of the tests) and reads it. A case
may load, and is then used, or it may be refused by a ValueError or an OSError that names the file.
Everything else is a fault: another error, an error that names no file, more than 6 s, more than
1 GiB above the interpreter, or the end of the process. Cases run in worker processes with these
limits. A case is known by its reader and number, and can be run again alone by --reader and --case.
"""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import json
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from mutations import mutated
from readers import READERS

from harness import RESULTS, Report

SECONDS = 6
MEMORY = 1 << 30
BATCH = 2500  # cases per process
COLUMNS = ["reader", "cases", "loaded", "refused", "faults", "slowest s"]


class TooSlow(BaseException):
    """A case took more than SECONDS. It is no Exception, so that no reader catches it."""


def run_case(name: str, case: int, whole: bytes, path: Path) -> tuple[str, float]:
    """The outcome of a case, and its seconds."""
    reader = READERS[name]
    path.write_bytes(mutated(reader.kind, whole, random.Random(f"{name} {case}")))
    target = path.parent if reader.whole else path
    begin = time.perf_counter()
    signal.alarm(SECONDS)
    try:
        reader.read(target)
        outcome = "loaded"
    except (ValueError, OSError) as error:
        named = str(path.parent) in str(error)
        outcome = "refused" if named else f"names no file: {type(error).__name__}: {error}"
    except BaseException as error:
        outcome = f"{type(error).__name__}: {error}"
    finally:
        signal.alarm(0)
    return outcome[:300], time.perf_counter() - begin


def work(name: str, cases: range) -> None:
    """Run cases in this process and print a line before and after each."""

    def too_slow(*_: object) -> None:
        raise TooSlow

    signal.signal(signal.SIGALRM, too_slow)
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as folder:
        path = READERS[name].write(Path(folder))
        whole = path.read_bytes()
        READERS[name].read(path.parent if READERS[name].whole else path)  # imports, and kernels
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * resource.getpagesize() + MEMORY
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        for case in cases:
            print(json.dumps([case]), flush=True)
            # For a case that hangs where the alarm cannot reach it.
            faulthandler.dump_traceback_later(5 * SECONDS, exit=True)
            print(json.dumps([case, *run_case(name, case, whole, path)]), flush=True)


def run_batch(name: str, cases: range) -> list[tuple[int, str, float]]:
    """Run cases in a process of their own. If it ends early, the last case has that outcome."""
    command = [sys.executable, __file__, "--reader", name, "--worker", f"{cases[0]}:{cases[-1]}"]
    environment = os.environ | {"RUST_BACKTRACE": "0", "OPENBLAS_NUM_THREADS": "1"}
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    done: list[tuple[int, str, float]] = []
    begun = None
    assert process.stdout is not None
    for line in process.stdout:
        case, *outcome = json.loads(line)
        begun = case
        if outcome:
            done.append((case, *outcome))
            begun = None
    status = process.wait()
    if status and begun is None:
        raise RuntimeError(f"the worker for {name} ended with {status} outside a case")
    if begun is not None:
        done.append((begun, f"the process ended with {status}", 0.0))
    return done


def run_reader(name: str, cases: int) -> dict[str, Any]:
    """The row of one reader."""
    outcomes: list[tuple[int, str, float]] = []
    while len(outcomes) < cases:
        outcomes += run_batch(name, range(len(outcomes), min(len(outcomes) + BATCH, cases)))
    count = Counter(outcome for _, outcome, _ in outcomes)
    faults = [(case, o) for case, o, _ in outcomes if o not in ("loaded", "refused")]
    return {
        "reader": name,
        "cases": cases,
        "loaded": count["loaded"],
        "refused": count["refused"],
        "faults": len(faults),
        "slowest s": round(max(seconds for *_, seconds in outcomes), 3),
        "first faults": faults[:50],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=20_000, help="per reader (20000)")
    parser.add_argument("--reader", choices=READERS, action="append")
    parser.add_argument("--case", type=int, help="run one case here, and show its traceback")
    parser.add_argument("--jobs", type=int, default=2, help="readers at once (2)")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    names = args.reader or list(READERS)
    if args.worker:
        first, last = map(int, args.worker.split(":"))
        return work(names[0], range(first, last + 1))
    if args.case is not None:
        return show(names[0], args.case)
    report = Report("readers_fuzz", COLUMNS, args)
    with ThreadPoolExecutor(args.jobs) as pool:
        for row in pool.map(partial(run_reader, cases=args.cases), names):
            report.add(**row)
    report.write()
    return None


def show(name: str, case: int) -> None:
    reader = READERS[name]
    folder = Path(tempfile.mkdtemp())
    path = reader.write(folder)
    data = mutated(reader.kind, path.read_bytes(), random.Random(f"{name} {case}"))
    path.write_bytes(data)
    print(path)
    with contextlib.suppress(KeyboardInterrupt):
        reader.read(folder if reader.whole else path)
    print("loaded")


if __name__ == "__main__":
    main()
