"""Put sparse attention into an ONNX model, for ONNX Runtime."""

from __future__ import annotations

import argparse

from ..onnx_convert import convert_file
from . import selecting
from .parser import existing, nonempty


def arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("model", type=existing, help="an ONNX decoder with a cache of keys and values")
    add("-o", "--out", type=nonempty, required=True, help="the converted model")
    selecting.arguments(parser)


def run(args: argparse.Namespace) -> int:
    selection = selecting.selection(args)
    if args.centered is False:
        raise ValueError("--plain: the operator has centered codes alone")
    budget = selecting.budget(args)
    done = convert_file(args.model, args.out, budget, selection, args.dense_layers or 0)
    print(f"{args.out}: {done.replaced} attention nodes choose {budget} tokens per query head")
    for names, why in ((done.windows, "attend to a window"), (done.dense, "are dense layers")):
        if names:
            print(f"{len(names)} as they were, because they {why}: {', '.join(names)}")
    if done.causal:
        print(f"{done.causal} of them had a mask, which is taken to be causal, without padding")
    return 0
