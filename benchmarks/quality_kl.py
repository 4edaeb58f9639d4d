"""How far sparse attention moves the next token: KL divergence against full attention.

    python benchmarks/quality_kl.py --text pydoc --budget 64

A real model reads a window of a text densely; the window's last positions are then decoded one by
one, the true token put in each time, once under full attention and once under each selector, in all
layers, so that errors in the cache add up as they do in use. For every position the divergence of
the next token's distribution from that under full attention is taken.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
from collections.abc import Callable, Sequence
from datetime import date
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_softmax

import adamas_core
from adamas_core import PAPER, KVCache, attend, calibrate
from adamas_core.cli import fetch
from adamas_core.cli.progress import bar
from adamas_core.reference import tokenizers
from adamas_core.reference.llama import Llama, generate, load

Attention = Callable[[int, NDArray[Any], NDArray[Any], NDArray[Any]], NDArray[Any]]
RESULTS = Path(__file__).parent / "results"

# Each selector: the metric and query_bits, and the thresholds' rule.
SELECTORS = {
    "weighted, query_bits 4": ("weighted", 4, "rms"),
    "weighted, query_bits 3": ("weighted", 3, "rms"),
    "manhattan, rms thresholds": ("manhattan", 4, "rms"),
    "manhattan, quartile thresholds": ("manhattan", 4, "quartiles"),
    "manhattan, the paper's constants": ("manhattan", 4, "paper"),
}


def oracle(cache: KVCache, budget: int) -> Attention:
    """Attention to the tokens of the largest exact q.k."""

    def attention(layer: int, q: NDArray[Any], k: NDArray[Any], v: NDArray[Any]) -> NDArray[Any]:
        cache.append(k, v, layer)
        keys, values = cache[layer].k[0], cache[layer].v[0]  # (H_kv, S, D)
        grouped = q.reshape(len(keys), -1, q.shape[-1])  # (H_kv, G, D), L = 1
        logits = (grouped @ keys.swapaxes(-1, -2)).reshape(len(q), 1, -1)  # (H, 1, S)
        nearest = np.argpartition(-logits, budget - 1, axis=-1)[..., :budget]
        return attend(q, keys, values, np.sort(nearest, axis=-1).astype(np.int32))

    return attention


def selector(filled: KVCache, metric: str, bits: int, rule: str, budget: int) -> Attention:
    """Attention through codes of the same prefix, at thresholds of the given rule a layer."""
    layers = []
    for i in range(len(filled)):
        k, v = filled[i].k, filled[i].v
        t = PAPER if rule == "paper" else calibrate(k[:, :, :1024], rule)
        layer = KVCache(thresholds=t, metric=metric, query_bits=bits, capacity=k.shape[2] + 256)
        layer.append(k, v)
        layers.append(layer.attention(budget))

    return lambda layer, q, k, v: layers[layer](0, q, k, v)


def log_probabilities(
    model: Llama, tokens: Sequence[int], position: int, attention: Attention
) -> NDArray[np.float64]:
    """log p of the next token behind each of the tokens, (tokens, V)."""
    rows = [
        model.forward([token], position + i, attention).astype(np.float64)
        for i, token in enumerate(tokens)
    ]
    return log_softmax(np.stack(rows), axis=-1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, help="SmolLM2-135M-Instruct if not given")
    parser.add_argument("--text", default="pydoc", help="'pydoc' or a UTF-8 file")
    parser.add_argument(
        "--skip",
        type=int,
        nargs="+",
        default=[0, 30_000, 60_000, 90_000],
        help="where in the text, in tokens, each window begins",
    )
    parser.add_argument("--context", type=int, default=8192)
    parser.add_argument("--positions", type=int, default=96)
    parser.add_argument("--budget", type=int, default=64)
    parser.add_argument("--only", nargs="*", default=[*SELECTORS, "exact top-k"])
    args = parser.parse_args()

    path = args.model or fetch.smollm2()
    model, tokenizer = load(path), tokenizers.load(path)
    if args.text == "pydoc":
        text = "\n\n".join(topics[name] for name in sorted(topics))
    else:
        text = Path(args.text).read_text(encoding="utf-8")
    tokens = tokenizer.encode(text, special=False)

    divergence: dict[str, list[NDArray[np.float64]]] = {name: [] for name in args.only}
    agreement: dict[str, list[NDArray[np.bool_]]] = {name: [] for name in args.only}
    for skip in args.skip:
        window = tokens[skip : skip + args.context]
        prefix, rest = window[: -args.positions], window[-args.positions :]
        cache = KVCache(model.config.layers, dense_layers=range(model.config.layers))
        with bar(f"Reading tokens {skip} to {skip + len(prefix)}") as move:
            for _ in generate(model, prefix, cache.attention(None), max_tokens=0, on_prefill=move):
                pass
        full = log_probabilities(model, rest, len(prefix), cache.attention(None))
        for name in args.only:
            cache.truncate(len(prefix))
            if name == "exact top-k":
                attention = oracle(cache, args.budget)
            else:
                attention = selector(cache, *SELECTORS[name], args.budget)
            other = log_probabilities(model, rest, len(prefix), attention)
            divergence[name].append((np.exp(full) * (full - other)).sum(axis=-1))
            agreement[name].append(full.argmax(axis=-1) == other.argmax(axis=-1))

    rows: dict[str, dict[str, object]] = {}
    for name, parts in divergence.items():
        kl, same = np.concatenate(parts), np.concatenate(agreement[name]).mean()
        rows[name] = {
            "kl_mean": float(kl.mean()),
            "kl_standard_error": float(kl.std(ddof=1) / np.sqrt(len(kl))),
            "kl_median": float(np.median(kl)),
            "kl_mean_of_each_window": [float(part.mean()) for part in parts],
            "top1_agreement": float(same),
        }
        print(f"{name:<34} KL {kl.mean():.4f}  median {np.median(kl):.4f}  top-1 {same:.3f}")

    result = {
        "benchmark": "quality_kl",
        "command": " ".join(["python", *sys.argv]),
        "date": date.today().isoformat(),
        "model": path.name,
        "text": args.text,
        "python": platform.python_version(),
        "adamas_core": adamas_core.__version__,
        "context": args.context,
        "windows_begin_at": args.skip,
        "positions_a_window": args.positions,
        "budget": args.budget,
        "selectors": rows,
    }
    RESULTS.mkdir(exist_ok=True)
    out = RESULTS / f"quality_kl-{Path(args.text).stem}-{args.budget}.json"
    out.write_text(json.dumps(result, indent=2) + "\n")
    print(f"written to {out}")


if __name__ == "__main__":
    main()
