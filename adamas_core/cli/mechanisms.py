"""Run the attention mechanisms of the field: what each costs, finds, and changes.

Costs are counted in runs of 1K to 64K tokens. Errors are those on a model that reads a text.
"""

from __future__ import annotations

import argparse
import json
from typing import Any

from ..lab import indexer_fit, mechanism_report
from ..lab.prefix import Prefix
from ..lab.reports import environment, write_json
from ..lab.texts import BUILT_IN
from ..llama import fetch
from . import mechanism_tables, terminal
from .compare import command, drawn, fits, limit_of, named_texts
from .loading import MODEL, fetched, loaded, model_name
from .parser import existing, no_effect, nonempty, whole, writable
from .progress import steps

CONTEXT, LEAST = 2048, 512
NOT_WITHOUT_MODEL = ("model", "tokenizer", "text", "context")


def arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--model", type=model_name, help=f"{MODEL} ({fetch.DEFAULT})")
    add("--tokenizer", type=existing, help="the tokenizer, if it is not beside the model")
    add("--text", help=f"{', '.join(BUILT_IN)} or a UTF-8 file (pydoc)")
    add("--context", type=whole(LEAST), help=f"tokens of the text ({CONTEXT})")
    add("--no-model", action="store_true", help="only what needs no model: costs and needles")
    add("--json", action="store_true", help="print JSON in place of tables")
    add("--out", type=nonempty, help="also write mechanisms.json and a plot to this folder")


def run(args: argparse.Namespace) -> int:
    if args.no_model:
        given = {f"--{name}": getattr(args, name) for name in NOT_WITHOUT_MODEL}
        no_effect(given, "with --no-model")
    model = args.model or fetch.MODELS[fetch.DEFAULT]
    context = args.context or CONTEXT
    if not args.no_model:
        fits(model, limit_of(model), [context])
        (text,) = named_texts([args.text or "pydoc"])
        indexer_fit.minimizer()  # without SciPy the command ends here, and not after the download
    terminal.console()
    if args.out:
        writable(args.out)
    path = None if args.no_model else fetched(model)
    report: dict[str, Any] = {**environment(path, command()), **mechanism_report.setting()}
    with steps() as move:
        report["rows"] = mechanism_report.counted_rows(move)
    if path is not None:
        decoder, tokenizer = loaded(path, args.tokenizer)
        fits(model, decoder.config.context, [context])
        tokens = text.windows(tokenizer, [context])[context][:-1]
        with steps() as move:
            reading = f"Reading {context} tokens of {text.name}"
            prefix = Prefix(decoder, tokens, 1, lambda done, total: move(reading, done, total))
            report |= {"text": text.name, "context": context}
            report |= mechanism_report.model_report(prefix, move)
    if args.json:
        print(json.dumps(report))
    else:
        mechanism_tables.show_all(report)
    if args.out:
        write_json(args.out / "mechanisms.json", report)
        drawn("mechanism_plots", lambda plots: plots.costs(report, args.out))
    return 0
