"""A decode step with a tail on the CPU, beside the same step without one.

    python benchmarks/cpu_tail.py

A step is the public ``decode_attention(q, cache, budget)``, cold. All forms read one cache, which
has what a tail needs, and take turns in one run. "/ none" is the median of a form in units of the
median without a tail. harness.py says what cold means.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

import numpy as np

import inputs
from adamas_core import KVCache, Selection, decode_attention
from harness import RESULTS, Form, Report, measure, statistics

COLUMNS = ["heads", "tokens", "name", "ms", "p10", "p90", "min", "/ none"]


def forms_of(case: str, args: argparse.Namespace) -> dict[str, Form]:
    """The step without a tail, and with each of the tails."""
    H, H_kv, S = (int(x) for x in case.split("/"))
    q, plain = inputs.make(
        args.data, args.dtype, 1, H, H_kv, S, args.head_dim, args.gigabytes * 10**9
    )
    cache = KVCache(selection=Selection(tail=1), capacity=S)
    cache.append(plain[0].k, plain[0].v)
    forms = {}
    for tail in (0, *args.tails):
        selected = inputs.with_selection(cache, Selection(tail=tail))
        step = partial(decode_attention, q, selected, min(args.budget, S))
        forms[f"tail {tail}" if tail else "no tail"] = Form(step)
    return forms


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    cases = ["32/8/32768", "32/8/131072"]
    parser.add_argument("--cases", nargs="+", default=cases, help="query heads/KV heads/tokens")
    parser.add_argument("--tails", nargs="+", type=int, default=[64, 256, 1024])
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], default="float32")
    parser.add_argument("--data", choices=["random", "structured"], default="random")
    parser.add_argument("--head-dim", type=int, default=128)
    parser.add_argument("--budget", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=40)
    parser.add_argument("--gigabytes", type=int, default=16, help="the largest cache to make")
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    report = Report("cpu_tail", COLUMNS, args)
    for case in args.cases:
        try:
            forms = forms_of(case, args)
        except inputs.TooLarge as error:
            report.not_run(case, str(error))
            continue
        times = measure(forms, "cold", args.repeats)
        none = float(np.median(times["no tail"]))
        heads, _, tokens = case.rpartition("/")
        for name, taken in times.items():
            ratio = round(float(np.median(taken)) / none, 2)
            row = {"heads": heads, "tokens": int(tokens), "name": name, "/ none": ratio}
            report.add(**row, **statistics(taken))
    report.write()


if __name__ == "__main__":
    main()
