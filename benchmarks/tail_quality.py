"""The next token with the tail, against full attention, on a model and a text.

    python benchmarks/tail_quality.py smollm2-135m pydoc --forms 128+0 128+1024 32+1024

A form is a budget and a tail: 128+1024 reads 128 tokens as they are and 1024 by their codes, and
128+0 drops all but 128. Every layer without a window is sparse. The text is read densely but for
its last positions, which are decoded one by one over a `KVCache`. docs/quality.md says what KL,
perplexity and the intervals are. Each result is a line of results/quality/tail.jsonl.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adamas_core import KVCache, Selection
from adamas_core.lab.measuring import Reading
from adamas_core.lab.metrics import batch_mean, next_token
from adamas_core.lab.texts import named
from adamas_core.llama import fetch, load, load_tokenizer

RESULTS = Path(__file__).parent / "results" / "quality" / "tail.jsonl"


def decoded(reading: Reading, selection: Selection, budget: int) -> NDArray[np.float32]:
    """The logits (L, V) of the last positions, each by a step over a cache of its prefix."""
    prefix = reading.prefix
    cache = KVCache(len(prefix.layers), selection, capacity=reading.context)
    for place in range(len(prefix.layers)):
        k, v = (np.ascontiguousarray(x[:, : reading.start]) for x in prefix.keys_values(place))
        cache.append(k, v, place)
    step = cache.attention(budget)
    places = {layer: place for place, layer in enumerate(prefix.layers)}

    def attention(layer: int, q: Any, k: Any, v: Any) -> Any:
        if layer in places:
            return step(places[layer], q, k, v)
        return prefix.dense(layer, q, k, v)

    prefix.rewind()
    return prefix.model.forward(
        reading.tokens[reading.start : reading.context], reading.start, attention, last=False
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", help=f"a file, or one of {', '.join(fetch.MODELS)}")
    parser.add_argument("text", help="pydoc, source, or a file")
    parser.add_argument("--forms", nargs="+", default=["128+0", "128+1024", "32+1024"])
    parser.add_argument("--context", type=int, default=8192)
    parser.add_argument("--positions", type=int, default=512)
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    path = fetch.fetch(fetch.MODELS[args.model]) if args.model in fetch.MODELS else args.model
    model, tokenizer, text = load(path), load_tokenizer(path), named(args.text)
    window = text.windows(tokenizer, [args.context])[args.context]
    reading = Reading(model, window, args.positions)
    full = reading.full()
    for form in args.forms:
        budget, tail = map(int, form.split("+"))
        logits = decoded(reading, Selection(tail=tail), budget)
        found = next_token(reading.logits, logits, reading.tokens[reading.start + 1 :])
        kl = batch_mean(found.kl)
        result = {
            "model": Path(path).name,
            "text": text.name,
            "context": args.context,
            "positions": args.positions,
            "budget": budget,
            "tail": tail,
            "kl": [round(float(kl.value), 6), round(float(kl.half), 6)],
            "perplexity_ratio": round(math.exp(found.loss.mean() - full.loss.mean()), 5),
            "top1": round(float(found.agrees.mean()), 4),
        }
        print(json.dumps(result), flush=True)
        with args.out.open("a") as file:
            file.write(json.dumps(result) + "\n")


if __name__ == "__main__":
    main()
