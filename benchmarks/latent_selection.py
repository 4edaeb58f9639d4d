"""Tokens chosen by codes of latent rows, as MLA keeps them, at the context of a real model.

    python benchmarks/latent_selection.py gemma-3-270m.gguf --context 32768

The model reads a text, and each of its layers without a window is written as MLA: see
adamas_core/lab/latent_rows.py. Figures are for the last 128 tokens.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from adamas_core.lab import latent_rows
from adamas_core.lab.prefix import Prefix
from adamas_core.lab.reports import environment, write_json
from adamas_core.lab.texts import named
from adamas_core.llama import load, load_tokenizer

QUERIES = 128
RESULTS = Path(__file__).parent / "results"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path, help="a GGUF file with its tokenizer")
    parser.add_argument("--texts", nargs="+", default=["pydoc"], help="as in adamas-core compare")
    parser.add_argument("--context", type=int, default=32768)
    parser.add_argument("--budget", type=int, default=128)
    parser.add_argument("--out", type=Path, default=RESULTS, help="a folder")
    args = parser.parse_args()
    model, tokenizer = load(args.model), load_tokenizer(args.model)
    rows = []
    for name in args.texts:
        text = named(name)
        tokens = text.windows(tokenizer, [args.context])[args.context][:-1]
        prefix = Prefix(model, tokens, 0)
        for place, layer in enumerate(prefix.layers):
            q = prefix.q[place][:, -QUERIES:]
            found = latent_rows.compared(q, *prefix.keys_values(place), args.budget)
            rows.append({"text": text.name, "layer": layer, **found})
            print(rows[-1], flush=True)
    target = args.out / f"latent_selection-{args.model.stem}.json"
    write_json(target, {**environment(args.model, "latent_selection.py"), "rows": rows})


if __name__ == "__main__":
    main()
