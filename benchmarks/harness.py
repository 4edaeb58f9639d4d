"""Shared by the CPU benchmarks: timing in turns, cold and hot; the floor; the report.

Cold: before every call, enough other memory is read to empty the caches, as the other layers of a
model do. Hot: the same call was made twice just before. All forms take turns in one run, so they
see the same state of the machine.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

import adamas_core
import peers

RESULTS = Path(__file__).parent / "results"
EVICT_BYTES = 192 << 20  # several times the last-level cache
FEWEST = 3  # every form is repeated at least this often
SLOW_MS = 1500.0  # a form that took longer than this in all is not repeated any more
# A form is dropped if its first call takes more than HOPELESS times the best time of its peer, and
# more than HOPELESS_MS.
HOPELESS, HOPELESS_MS = 4, 100.0
REST_SECONDS = 0.01  # pause after a form, because its threads may still spin

_evict = np.ones(EVICT_BYTES // 8, np.int64)


@dataclass
class Form:
    """A call to time. `facts` are the columns of its row beside the times.

    Two functions are called before each call and not timed: `before`, before the caches are
    emptied, and `after_emptying`, after that.
    """

    call: Callable[[], Any]
    before: Callable[[], Any] = lambda: None
    facts: dict[str, Any] = field(default_factory=dict)
    after_emptying: Callable[[], Any] = lambda: None
    rest: float = REST_SECONDS  # pause before the turn of the next form


def measure(forms: dict[str, Form], state: str, repeats: int) -> dict[str, NDArray[np.float64]]:
    """Milliseconds of every form. The forms take turns."""
    times: dict[str, list[float]] = {name: [] for name in forms}
    for form in forms.values():
        form.before()
        form.call()
    rest = 0.0
    for turn in range(repeats):
        for name, form in forms.items():
            if turn >= FEWEST and sum(times[name]) > SLOW_MS:
                continue
            time.sleep(rest)
            rest = form.rest
            if state == "cold":
                form.before()
                _evict.sum()
                form.after_emptying()
            else:
                for _ in range(2):
                    form.before()
                    form.call()
                form.before()
            start = time.perf_counter()
            form.call()
            times[name].append(1e3 * (time.perf_counter() - start))
    return {name: np.array(t) for name, t in times.items()}


def statistics(times: NDArray[np.float64]) -> dict[str, float]:
    low, median, high = np.percentile(times, [10, 50, 90])
    values = {"ms": median, "p10": low, "p90": high, "min": times.min()}
    return {k: round(float(x), 4) for k, x in values.items()} | {"repeats": len(times)}


@numba.njit(parallel=True, nogil=True)
def _read(words: NDArray[np.int64]) -> int:
    total = 0
    for i in numba.prange(len(words)):
        total += words[i]
    return total


class Floor:
    """A plain read of some number of bytes, in order and on all threads.

    A step that needs these bytes from memory cannot be faster.
    """

    def __init__(self, most_bytes: int) -> None:
        self._words = np.ones(most_bytes // 8 + 1, np.int64)
        _read(self._words)

    def form(self, nbytes: int) -> Form:
        words = self._words[: nbytes // 8]
        return Form(lambda: _read(words), facts={"bytes": nbytes})


def fastest_forms(
    forms: dict[tuple[str, str], Callable[[], Any]],
    expected: NDArray[Any],
    hopeless: set[tuple[str, str]],
) -> dict[str, Form]:
    """The fastest form of each peer in a few cold calls; AssertionError if a result is wrong.

    Its facts hold the least time of every form that was tried. Forms in `hopeless` are left out.
    Forms that are far slower than another form of their peer are added to `hopeless`. The tolerance
    for 16-bit results is wide, because llama.cpp sums float16 values in float16.
    """
    largest = float(np.abs(expected).max())
    tolerance = 1e-4 if expected.dtype == np.float32 else 0.1
    reference = expected.astype(np.float32).reshape(-1)
    best: dict[str, tuple[float, Form]] = {}
    trials: dict[str, dict[str, float]] = {}
    for (peer, name), call in forms.items():
        if (peer, name) in hopeless:
            continue
        start = time.perf_counter()
        out = call()
        first = 1e3 * (time.perf_counter() - start)
        error = float(np.abs(peers.float32(out).reshape(-1) - reference).max()) / largest
        if not error <= tolerance:
            raise AssertionError(
                f"{peer}, {name}: differs by {error:.1e} of the largest output; expected at most "
                f"{tolerance:.0e}"
            )
        if peer in best and first > max(HOPELESS * best[peer][0], HOPELESS_MS):
            hopeless.add((peer, name))
            continue
        facts = {"peer": peer, "form": name, "error": float(f"{error:.1e}")}
        form = Form(call, facts=facts, rest=peers.REST_SECONDS.get(peer, REST_SECONDS))
        ms = float(measure({name: form}, "cold", FEWEST)[name].min())
        trials.setdefault(peer, {})[name] = round(ms, 4)
        if peer not in best or ms < best[peer][0]:
            best[peer] = ms, form
    for peer, (_, form) in best.items():
        form.facts["trials"] = trials[peer]
    return {peer: form for peer, (_, form) in best.items()}


class Report:
    """Rows, printed at once, and written as JSON and as a Markdown table at the end."""

    def __init__(self, name: str, columns: Iterable[str], arguments: argparse.Namespace) -> None:
        self.name = name
        self._columns = list(columns)
        self._folder = arguments.out
        self.rows: list[dict[str, Any]] = []
        self._not_run: list[dict[str, str]] = []
        # Not with the other imports: after them Numba's threads, which other forms use, stay awake
        # between calls. Before them they did not, and all forms were slower.
        from adamas_core.cpu._engine import ENGINE

        now = datetime.now(UTC)
        self._head = {
            "figure": name,
            "date": now.isoformat(timespec="seconds"),
            "device": processor(),
            "threads": numba.get_num_threads(),
            "engine": ENGINE.about,
            "versions": {
                "adamas_core": adamas_core.__version__,
                "numba": numba.__version__,
                "numpy": np.__version__,
                "python": platform.python_version(),
                **peers.versions(),
            },
            "arguments": {k: v for k, v in vars(arguments).items() if k not in ("out", "figure")},
            "evict_bytes": EVICT_BYTES,
        }
        print(self._line(self._columns), self._line("---" for _ in self._columns), sep="\n")

    def add(self, **row: Any) -> None:
        self.rows.append(row)
        print(self._line(shown(row.get(column)) for column in self._columns), flush=True)

    def not_run(self, what: str, reason: str) -> None:
        """Print and keep the reason why something was not run, once."""
        entry = {"what": what, "reason": reason}
        if entry not in self._not_run:
            self._not_run.append(entry)
            print(f"not run: {what}: {reason}", flush=True)

    def write(self) -> Path:
        self._folder.mkdir(exist_ok=True)
        path = self._folder / f"{self.name}.json"
        body = {**self._head, "rows": self.rows, "not_run": self._not_run}
        path.write_text(json.dumps(body, indent=1, default=str) + "\n")
        lines = [self._line(self._columns), self._line("---" for _ in self._columns)]
        lines += [self._line(shown(row.get(c)) for c in self._columns) for row in self.rows]
        lines += ["", f"{self._head['device']}, {self._head['threads']} threads, "]
        lines[-1] += f"{self._head['date'][:10]}; median ms, with the 10th and 90th percentiles."
        lines += [f"Not run: {x['what']}: {x['reason']}." for x in self._not_run]
        path.with_suffix(".md").write_text("\n".join(lines) + "\n")
        print(f"wrote {path}")
        return path

    @staticmethod
    def _line(cells: Iterable[str]) -> str:
        return f"| {' | '.join(cells)} |"


def shown(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1000 else f"{value:.0f}"
    return str(value)


def processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor()


def memory_available() -> int:
    """Bytes of memory that the system still has available."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable"):
            return int(line.split()[1]) << 10
    return 1 << 62
