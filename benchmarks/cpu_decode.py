"""One decode step on the CPU, raw query in and output out, beside what people use today.

    python benchmarks/cpu_decode.py table --dtype bfloat16

`table`    the step, appending a token, every peer and the floor, cold and hot; plain codes, and
           centered ones
`length`   time against S, from 1K tokens to 4M
`budget`   time against the budget, from 16 tokens to 4096
`stages`   where the step's time goes
`threads`  time on one thread and on all
`shapes`   time against heads and batch
`options`  the cost of refine, group and centered codes for a step, and for appending a token

A step is the public ``decode_attention(q, cache, budget)``. Each peer is given the same arrays,
was seen to agree with the library's dense attention, and is quoted in the fastest of its forms,
found by a trial in the same run. "times" is how many times as fast as the fastest dense peer a form
is. The floor is a plain read of as many bytes as the step must touch: every code once, and K and V
of the tokens that were chosen, once where query heads share them; "floors" is a form's time in
units of it. harness.py says what cold and hot mean.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

import inputs
import peers
import plots
from adamas_core import KVCache, Selection, attend, decode_attention, select_topk
from harness import RESULTS, Floor, Form, Report, fastest_forms, measure, statistics

COLUMNS = ["heads", "tokens", "state", "name", "form", "ms", "p10", "p90", "times", "MB", "floors"]
PEER_LIMIT_MS = 1000.0  # a peer that takes longer is left out at greater lengths


def name_of(selection: Selection) -> str:
    bits = f" {selection.query_bits}" if selection.metric == "weighted" else ""
    return f"{selection.metric}{bits}"


@dataclass
class Setting:
    """Queries and a cache of one size, and the forms over them."""

    q: NDArray[Any]
    cache: KVCache
    selection: Selection
    budget: int

    def select(self, budget: int) -> NDArray[np.int32]:
        held = self.cache[0]
        return select_topk(self.q, held.codes, budget, self.selection, held.k)

    def bytes_that_must_move(self) -> int:
        """Counted from the actual selection."""
        B, H_kv, _, D = self.cache[0].shape
        chosen = self.select(self.budget)
        lists = chosen.reshape(B * H_kv, -1)  # the heads of a group one after another
        rows = sum(np.unique(x).size for x in lists)
        return self.cache[0].codes.nbytes + 2 * rows * D * self.cache[0].k.itemsize

    def with_centered_codes(self) -> Setting:
        """The same with a second cache, which has centered codes."""
        cache = KVCache(capacity=self.cache[0].tokens)
        cache.append(self.cache[0].k, self.cache[0].v)
        return replace(self, cache=cache)

    def step(self) -> Form:
        cache = inputs.with_selection(self.cache, self.selection)
        return Form(
            lambda: decode_attention(self.q, cache, self.budget),
            facts={"peer": "adamas-core", "bytes": self.bytes_that_must_move()},
        )

    def append(self) -> Form:
        """The last token, taken away and appended again."""
        S = self.cache[0].tokens
        k, v = (np.ascontiguousarray(x[:, :, -1:]) for x in (self.cache[0].k, self.cache[0].v))
        return Form(lambda: self.cache.append(k, v), lambda: self.cache.truncate(S - 1))

    def dense(
        self, names: list[str], report: Report, hopeless: set[tuple[str, str]]
    ) -> dict[str, Form]:
        """Every peer in its fastest form; `hopeless` ones are not tried again."""
        k, v = self.cache[0].k, self.cache[0].v
        forms, missing = peers.dense_forms(self.q, k, v, numba.get_num_threads(), names)
        for peer, reason in missing.items():
            report.not_run(f"{peer}, {k.dtype.name}", reason)
        return fastest_forms(forms, attend(self.q, k, v, None), hopeless)


def selections(args: argparse.Namespace) -> list[Selection]:
    found = [Selection("manhattan")] if "manhattan" in args.metric else []
    if "weighted" in args.metric:
        found += [Selection(query_bits=bits) for bits in args.query_bits]
    return found


def settings(args: argparse.Namespace, report: Report) -> Iterator[tuple[dict[str, Any], Setting]]:
    """The cases of the command line, H/H_kv/S or BxH/H_kv/S, and their columns."""
    for case in args.cases:
        batch, _, shape = case.rpartition("x")
        B = int(batch or 1)
        H, H_kv, S = (int(x) for x in shape.split("/"))
        try:
            q, cache = inputs.make(
                args.data, args.dtype, B, H, H_kv, S, args.head_dim, args.gigabytes * 10**9
            )
        except inputs.TooLarge as error:
            report.not_run(case, str(error))
            continue
        facts = {"heads": f"{H}/{H_kv}" if B == 1 else f"{B} x {H}/{H_kv}", "tokens": S}
        yield facts, Setting(q, cache, Selection(), min(args.budget, S))


def compare(
    report: Report,
    facts: dict[str, Any],
    forms: dict[str, Form],
    dense: dict[str, Form],
    state: str,
    repeats: int,
) -> dict[str, float]:
    """Rows of our forms, of the peers' and of the floors, timed in turns; the peers' medians."""
    sizes = {form.facts["bytes"] for form in forms.values() if "bytes" in form.facts}
    floor = Floor(max(sizes))
    # Sizes that hardly differ share the floor of the smallest.
    shared = {n: min(size for size in sizes if size >= n / 1.05) for n in sizes}
    floors = {n: f"read {size / 1e6:.2f} MB" for n, size in shared.items()}
    reads = {floors[size]: floor.form(size) for size in sorted(set(shared.values()))}
    every = {**forms, **dense, **reads}
    times = measure(every, state, repeats)
    medians = {name: float(np.median(t)) for name, t in times.items()}
    fastest = min((medians[peer] for peer in dense), default=None)
    for name, form in every.items():
        row = facts | form.facts | statistics(times[name])
        nbytes = row.pop("bytes", None)
        if nbytes:
            row["MB"] = round(nbytes / 1e6, 2)
            row["floors"] = round(medians[name] / medians[floors[nbytes]], 2)
        if fastest and "peer" in row:
            row["times"] = round(fastest / medians[name], 2)
        report.add(state=state, name=name, **row)
    return {peer: medians[peer] for peer in dense}


def steps(setting: Setting, args: argparse.Namespace) -> dict[str, Form]:
    return {name_of(x): replace(setting, selection=x).step() for x in selections(args)}


def table(args: argparse.Namespace, report: Report) -> None:
    for facts, setting in settings(args, report):
        dense = setting.dense(args.peers, report, set())
        centered = setting.with_centered_codes()
        ours = {
            **steps(setting, args),
            "weighted 4, centered": centered.step(),
            "append a token": setting.append(),
            "append a token, centered": centered.append(),
        }
        for state in args.state:
            compare(report, facts, ours, dense, state, args.repeats)


def length(args: argparse.Namespace, report: Report) -> None:
    """The peers that have not become too slow, at each length."""
    left = list(args.peers)
    hopeless: set[tuple[str, str]] = set()
    for facts, setting in settings(args, report):
        dense = setting.dense(left, report, hopeless)
        medians = compare(report, facts, steps(setting, args), dense, "cold", args.repeats)
        for peer, ms in medians.items():
            if ms > PEER_LIMIT_MS:
                left.remove(peer)
                beyond = f"{peer} beyond {facts['tokens']} tokens"
                report.not_run(beyond, f"takes {ms / 1e3:.1f} s there")


def budget(args: argparse.Namespace, report: Report) -> None:
    for facts, setting in settings(args, report):
        dense = setting.dense(args.peers, report, set())
        for size in (n for n in args.budgets if n <= facts["tokens"]):
            ours = steps(replace(setting, budget=size), args)
            facts["budget"] = size
            medians = compare(report, facts, ours, dense, "cold", args.repeats)
            # Peers do not depend on the budget: all once, then the fastest as a yardstick.
            fastest = sorted(medians, key=lambda peer: medians[peer])[:1]
            dense = {peer: dense[peer] for peer in fastest}


def stages(args: argparse.Namespace, report: Report) -> None:
    """Each part is a difference of calls that do ever more of the step.

    prepare: select_topk over one tile of 64 tokens. scan: select_topk of one token over the whole
    cache, less that. select: of `budget` tokens, less that. attend: `attend` to the chosen tokens.
    rest: the step less all these; below 0 where the step saves by doing them together. For all
    these the caches are emptied and then the same function is called on one tile, so that the
    program is in cache and the data is not. program: what the step takes longer without that call,
    when the interpreter and the kernels have to come from memory too.
    """
    for facts, setting in settings(args, report):
        k, v = setting.cache[0].k, setting.cache[0].v
        tile = KVCache(centered=False, capacity=64)
        tile.append(k[:, :, :64], v[:, :, :64])
        tile_k, tile_v = tile[0].k, tile[0].v
        for selection in selections(args):
            whole = replace(setting, selection=selection)
            start = replace(whole, cache=tile, budget=1)
            chosen, first = whole.select(whole.budget), start.select(1)
            step = whole.step()
            nbytes = step.facts["bytes"]
            warm_select = partial(start.select, 1)
            warm_attend = partial(attend, whole.q, tile_k, tile_v, first)
            warm_step = partial(
                decode_attention, whole.q, inputs.with_selection(tile, selection), 1
            )
            forms = {
                "prepare": Form(warm_select, after_emptying=warm_select),
                "scan": Form(partial(whole.select, 1), after_emptying=warm_select),
                "select": Form(partial(whole.select, whole.budget), after_emptying=warm_select),
                "attend": Form(partial(attend, whole.q, k, v, chosen), after_emptying=warm_attend),
                "together": replace(step, after_emptying=warm_step),
                "step": step,
                "floor": Floor(nbytes).form(nbytes),
            }
            times = measure(forms, "cold", args.repeats)
            ms = {name: float(np.median(t)) for name, t in times.items()}
            parts = {
                "prepare": ms["prepare"],
                "scan": ms["scan"] - ms["prepare"],
                "select": ms["select"] - ms["scan"],
                "attend": ms["attend"],
                "rest": ms["together"] - ms["select"] - ms["attend"],
                "program": ms["step"] - ms["together"],
            }
            row = facts | {"state": "cold", "name": name_of(selection)}
            for name, part in parts.items():
                report.add(**row, form=name, ms=round(part, 4), share=round(part / ms["step"], 3))
            row["MB"] = round(nbytes / 1e6, 2)
            for name in ("step", "floor"):
                floors = round(ms[name] / ms["floor"], 2)
                report.add(**row, form=name, **statistics(times[name]), floors=floors)


def threads(args: argparse.Namespace, report: Report) -> None:
    most = numba.get_num_threads()
    for facts, setting in settings(args, report):
        for count in range(1, most + 1):
            facts["threads"] = count
            numba.set_num_threads(count)
            dense = setting.dense(args.peers, report, set())
            compare(report, facts, steps(setting, args), dense, "cold", args.repeats)
        numba.set_num_threads(most)


OPTIONS = {
    "no option": Selection(),
    "refine 2": Selection(refine=2),
    "refine 4": Selection(refine=4),
    "group": Selection(group=True),
}
OF_CENTERED = {
    "centered": Selection(),
    "centered, refine 2": Selection(refine=2),
    "centered, group": Selection(group=True),
}


def options(args: argparse.Namespace, report: Report) -> None:
    """Times in units ("/ none") of the step without an option, or of appending to plain codes."""
    for facts, setting in settings(args, report):
        centered = setting.with_centered_codes()
        forms = {name: replace(setting, selection=x).step() for name, x in OPTIONS.items()}
        forms |= {name: replace(centered, selection=x).step() for name, x in OF_CENTERED.items()}
        appends = {
            "append a token": setting.append(),
            "append a token, centered": centered.append(),
        }
        for state in args.state:
            for group in (forms, appends):
                times = measure(group, state, args.repeats)
                first = float(np.median(next(iter(times.values()))))
                for name in group:
                    ratio = round(float(np.median(times[name])) / first, 2)
                    row = facts | {"state": state, "name": name, "/ none": ratio}
                    report.add(**row, **statistics(times[name]))


DEFAULTS = {
    "cases": ["32/8/32768", "32/8/131072", "32/32/32768"],
    "dtype": "float32",
    "state": ["cold", "hot"],
    "metric": ["manhattan", "weighted"],
    "query_bits": [4],
    "peers": [name for name, _, _ in peers.DENSE],
    "data": "random",
    "head_dim": 128,
    "budget": 128,
    "budgets": [1 << n for n in range(4, 13)],
    "repeats": 20,
    "gigabytes": 16,
    "out": RESULTS,
}
ONE_CASE = {"cases": ["32/8/131072"]}
# A figure: what runs it, its table's columns, and where its defaults differ.
FIGURES: dict[str, tuple[Callable[..., None], list[str], dict[str, Any]]] = {
    "table": (table, COLUMNS, {"query_bits": [4, 3]}),
    "length": (
        length,
        COLUMNS,
        {"cases": [f"8/2/{1 << n}" for n in range(10, 23)], "dtype": "bfloat16"},
    ),
    "budget": (budget, ["budget", *COLUMNS], ONE_CASE),
    "stages": (stages, [*COLUMNS[:8], "share", *COLUMNS[9:]], {}),
    "threads": (threads, ["threads", *COLUMNS], ONE_CASE),
    "options": (
        options,
        ["heads", "tokens", "state", "name", "ms", "p10", "p90", "/ none"],
        {"cases": ["32/8/32768", "32/8/131072", "8/8/131072"]},
    ),
    "shapes": (
        table,
        COLUMNS,
        {
            "cases": [
                *("8/1/32768", "32/1/32768", "16/4/32768", "32/4/32768", "32/8/32768"),
                *("64/8/32768", "16/16/32768", "32/32/32768"),
                *("2x32/8/16384", "4x32/8/16384", "8x32/8/16384"),
            ],
            "state": ["cold"],
        },
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,  # defaults depend on the figure
    )
    parser.add_argument("figure", choices=FIGURES)
    parser.add_argument("--cases", nargs="+", help="query heads/KV heads/tokens, with batch: 2x...")
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--state", nargs="+", choices=["cold", "hot"])
    parser.add_argument("--metric", nargs="+", choices=DEFAULTS["metric"])
    parser.add_argument("--query-bits", nargs="+", type=int)
    parser.add_argument("--peers", nargs="*", choices=DEFAULTS["peers"])
    parser.add_argument("--data", choices=["random", "structured"])
    parser.add_argument("--head-dim", type=int)
    parser.add_argument("--budget", type=int)
    parser.add_argument("--budgets", nargs="+", type=int)
    parser.add_argument("--repeats", type=int)
    parser.add_argument("--gigabytes", type=int, help="the largest cache to make")
    parser.add_argument("--out", type=Path, help="folder of the results")
    given = vars(parser.parse_args())
    run, columns, differing = FIGURES[given["figure"]]
    args = argparse.Namespace(**(DEFAULTS | differing | given))
    report = Report(f"cpu_decode-{args.figure}-{args.dtype}", columns, args)
    run(args, report)
    plots.draw(report.write())


if __name__ == "__main__":
    main()
