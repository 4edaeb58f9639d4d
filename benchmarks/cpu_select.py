"""Selection alone on the CPU: from raw queries, or from scores that are ready, to token indices.

    python benchmarks/cpu_select.py peers
    python benchmarks/cpu_select.py orders

`peers`   select_topk beside FAISS IndexBinaryFlat on the same codes, and beside torch.topk and
          np.argpartition, with exact scores that are ready and with the time to compute them.
          FAISS's distances are seen to be those of `score` before it is timed, and each peer is
          quoted in the fastest of its forms. "/ weighted" and "/ manhattan" are times in
          units of those of ours.
`orders`  select_topk on keys whose distances come in an order that hurts: all equal, descending and
          so on. The indices are seen to be exact; "usual" is the time in units of the random order.

harness.py says what cold and hot mean.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numba
import numpy as np
import torch
from numpy.typing import NDArray

import inputs
from adamas_core import Selection, encode, hadamard, quantize, score, select_topk
from harness import RESULTS, Form, Report, measure, statistics
from peers.torch_cpu import tensor

OURS = {
    "weighted 4": Selection(),
    "weighted 3": Selection(query_bits=3),
    "manhattan": Selection("manhattan"),
}
FAISS = "FAISS IndexBinaryFlat"
TRIAL = 4  # calls of a form to find a peer's fastest


def ours(q: NDArray[Any], codes: Any, args: argparse.Namespace) -> dict[str, Form]:
    return {
        name: Form(partial(select_topk, q, codes, args.budget, selection))
        for name, selection in OURS.items()
    }


def compare_peers(args: argparse.Namespace, report: Report) -> None:
    for case in args.cases:
        H, H_kv, S = (int(x) for x in case.split("/"))
        q, cache = inputs.make(args.data, "float32", 1, H, H_kv, S, args.head_dim, 16 * 10**9)
        codes = cache[0].codes
        forms, k = ours(q, codes, args), cache[0].k
        found = peer_forms(q, k, args.budget)
        try:
            found[FAISS] = faiss_forms(q, k, codes, args.budget)
        except ImportError as error:
            report.not_run(FAISS, f"not installed: {error}")
        forms |= {peer: fastest(found[peer]) for peer in found}
        facts = {"heads": f"{H}/{H_kv}", "tokens": S}
        for state in args.state:
            times = measure(forms, state, args.repeats)
            for name, form in forms.items():
                row = facts | form.facts | {"state": state, "name": name}
                ratios = {
                    f"/ {one.split()[0]}": round(
                        float(np.median(times[name]) / np.median(times[one])), 2
                    )
                    for one in ("weighted 4", "manhattan")
                }
                report.add(**row, **statistics(times[name]), **ratios)


def fastest(forms: dict[str, Callable[[], Any]]) -> Form:
    times = measure({name: Form(call) for name, call in forms.items()}, "cold", TRIAL)
    trials = {name: round(float(t.min()), 4) for name, t in times.items()}
    name = min(trials, key=lambda name: trials[name])
    return Form(forms[name], facts={"form": name, "trials": trials})


def peer_forms(
    q: NDArray[np.float32], k: NDArray[np.float32], budget: int
) -> dict[str, dict[str, Callable[[], Any]]]:
    threads = numba.get_num_threads()
    torch.set_num_threads(threads)
    H, H_kv, S = q.shape[1], k.shape[1], k.shape[2]
    grouped = tensor(q.reshape(H_kv, H // H_kv, -1))
    keys = tensor(k[0])
    ready = (grouped @ keys.transpose(-1, -2)).reshape(H, S)  # exact scores, larger is nearer
    rows = ready.numpy()
    pool = ThreadPoolExecutor(threads)
    parts = np.array_split(rows, threads)

    def nearest(scores: NDArray[np.float32]) -> NDArray[Any]:
        return np.argpartition(scores, S - budget, axis=-1)[:, S - budget :]

    def scores_and_topk() -> Any:
        return torch.topk(grouped @ keys.transpose(-1, -2), budget, sorted=False)

    return {
        "torch.topk, scores ready": {
            "of all rows": lambda: torch.topk(ready, budget, sorted=False),
            "a part of the rows a thread": lambda: list(
                pool.map(lambda x: torch.topk(x, budget, sorted=False), ready.chunk(threads))
            ),
        },
        "np.argpartition, scores ready": {
            "of all rows": lambda: nearest(rows),
            "a part of the rows a thread": lambda: list(pool.map(nearest, parts)),
        },
        "q.k and torch.topk": {"grouped": scores_and_topk},
    }


def faiss_forms(
    q: NDArray[Any], k: NDArray[Any], codes: Any, budget: int
) -> dict[str, Callable[[], Any]]:
    """Once FAISS's distances are those of the tokens that select_topk chooses."""
    from peers import faiss_binary

    H, H_kv = q.shape[1], k.shape[1]
    thresholds = codes.thresholds
    groups = np.repeat(thresholds, H // H_kv, axis=0)
    transformed = hadamard(q)
    bits = faiss_binary.thermometer(transformed[0], groups).reshape(H_kv, H // H_kv, -1)
    # Thermometer codes a KV head at a time: all of them at once would be large.
    keys = np.concatenate(
        [faiss_binary.thermometer(hadamard(k[:, h])[:], thresholds[h : h + 1]) for h in range(H_kv)]
    )
    forms = faiss_binary.forms(bits, keys, budget, numba.get_num_threads())
    chosen = select_topk(q, codes, budget, OURS["manhattan"])[0, :, 0]  # (H, budget)
    query = quantize(transformed, groups)
    distances = score(query, codes.planes, codes.length, "manhattan")[0, :, 0]  # (H, S)
    expected = np.sort(np.take_along_axis(distances, chosen, axis=-1).astype(np.int32))
    for name, form in forms.items():
        theirs = np.sort(np.concatenate([d for d, _ in form()]))
        if not np.array_equal(theirs, expected):
            raise AssertionError(f"FAISS, {name}: other distances than ours")
    return forms


def distance_orders(S: int, most: int, rng: np.random.Generator) -> dict[str, NDArray[np.int64]]:
    """Distances of S tokens, 0 to `most`, in the usual order and in orders that hurt."""
    t = np.arange(S)
    return {
        "random": np.clip(rng.normal(most / 2, most**0.5 / 1.5, S).round(), 0, most).astype(int),
        "all equal": np.full(S, most // 2),
        "ascending": t * (most + 1) // S,
        "descending": (S - 1 - t) * (most + 1) // S,
        "staircase": (most - t // 64) % (most + 1),
        "two values": np.where(rng.random(S) < 0.5, most // 3, most // 2),
    }


def compare_orders(args: argparse.Namespace, report: Report) -> None:
    """Keys and a query made so that every distance is known.

    A transformed query of +-1 points to a corner with equal weights, and thresholds of +-0.5 code
    it as that corner too. A key with deviations d_i from the corner, 0 to 3 each, is at the
    distance sum d_i, times the weight.
    """
    D = args.head_dim
    rng = np.random.default_rng(0)
    corner = rng.choice(np.float32([-1, 1]), D)
    levels = np.float32([1, 1 / 3, -1 / 3, -1])  # times the corner: a coordinate 0 to 3 away
    for case in args.cases:
        H, H_kv, S = (int(x) for x in case.split("/"))
        q = hadamard(np.broadcast_to(corner, (1, H, 1, D)).copy())  # its own inverse
        facts = {"heads": f"{H}/{H_kv}", "tokens": S}
        forms, expected = {}, {}
        for order, distances in distance_orders(S, 3 * D, rng).items():
            deviations = np.clip(distances[:, None] - 3 * np.arange(D), 0, 3)
            head = hadamard(levels[deviations] * corner)
            k = np.broadcast_to(head, (1, H_kv, S, D))
            codes = encode(np.ascontiguousarray(k), [-0.5, 0, 0.5])
            nearest = np.lexsort((-np.arange(S), distances))[: args.budget]
            for name, form in ours(q, codes, args).items():
                forms[order, name], expected[order, name] = form, np.sort(nearest)
        for key, form in forms.items():
            if not (form.call() == expected[key]).all():
                raise AssertionError(f"{key} is not exact")
        times = measure(forms, "cold", args.repeats)
        for (order, name), t in times.items():
            usual = round(float(np.median(t) / np.median(times["random", name])), 2)
            report.add(**facts, state="cold", name=name, order=order, **statistics(t), usual=usual)


COLUMNS = [
    "heads",
    "tokens",
    "state",
    "name",
    "form",
    "ms",
    "p10",
    "p90",
    "/ weighted",
    "/ manhattan",
]
FIGURES = {
    "peers": (compare_peers, COLUMNS),
    "orders": (compare_orders, [*COLUMNS[:4], "order", *COLUMNS[5:8], "usual"]),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("figure", choices=FIGURES)
    cases = ["32/8/32768", "32/8/131072"]
    parser.add_argument("--cases", nargs="+", default=cases, help="query heads/KV heads/tokens")
    parser.add_argument("--state", nargs="+", default=["cold", "hot"], choices=["cold", "hot"])
    parser.add_argument("--data", default="random", choices=["random", "structured"])
    parser.add_argument("--head-dim", type=int, default=128)
    parser.add_argument("--budget", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    args = parser.parse_args()
    run, columns = FIGURES[args.figure]
    report = Report(f"cpu_select-{args.figure}", columns, args)
    run(args, report)
    report.write()


if __name__ == "__main__":
    main()
