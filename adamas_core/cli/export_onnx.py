"""Write a model as ONNX, for ONNX Runtime."""

from __future__ import annotations

import argparse

from ..llama import load
from ..llama.onnx_export import export
from .loading import MODEL, fetched, model_name
from .parser import nonempty
from .progress import bar


def arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--model", type=model_name, required=True, help=MODEL)
    help_out = "the graph; its weights go to the same name with .data at its end"
    add("-o", "--out", type=nonempty, required=True, help=help_out)


def run(args: argparse.Namespace) -> int:
    with bar("Loading the model"):
        model = load(fetched(args.model))
    export(model, args.out)
    print(f"{args.out}: {model.config.layers} layers with dense attention, weights of float32")
    return 0
