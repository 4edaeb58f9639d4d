"""The options of a selection and of its codes as arguments of a command.

Each field of `Selection` becomes one option. Its type and default are the field's, and its help is
the first sentence about it in the docstring of `Selection`.
"""

from __future__ import annotations

import argparse
import inspect
import re
from dataclasses import fields
from typing import Any, get_args, get_type_hints

from .. import checks
from ..cache import KVCache
from ..dispatch import BACKENDS, load
from ..llama import Config
from ..selection import Selection
from .parser import no_effect, real, whole, words

BUDGET = 128  # tokens per query head, if no other number is given

# In a numpydoc docstring: the names, the type, and the indented text.
PARAMETER = r"^(\w[\w, ]*) : (.*)\n((?: +\S.*\n|\n)+)"


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add --budget, the options of `Selection`, the kind of codes, and --dense-layers.

    The value of an option that is not given is None.
    """
    group = parser.add_argument_group("selection of tokens")
    add = group.add_argument
    tokens = f"tokens that a query head attends to ({BUDGET})"
    add("--budget", type=whole(1), help=tokens)
    about = described(Selection)
    for name, kind in kinds(Selection).items():
        option = "--" + name.replace("_", "-")
        default = getattr(Selection().settled(centered=True), name)
        shape, text = about.get(name, (None, ""))
        text = text.replace("%", "%%")
        if kind is bool:
            add(option, action=argparse.BooleanOptionalAction, help=f"{text} (no)")
        else:
            parse = {int: whole(0), float: real}.get(kind, words)
            shape = shape if kind is str else None
            text = f"{text} ({default})"
            add(option, type=parse, metavar=shape, help=text)
    codes = group.add_mutually_exclusive_group()
    codes.add_argument(
        "--centered",
        action="store_const",
        const=True,
        help="code keys relative to the mean of 64 tokens (the default where the metric allows it)",
    )
    codes.add_argument(
        "--plain",
        dest="centered",
        action="store_const",
        const=False,
        help="code the keys themselves, without a tail: 32 bytes per token at head_dim 128, not 87",
    )
    add(
        "--dense-layers",
        type=whole(0),
        help="how many of the first layers attend to all tokens (0)",
    )


def given(args: argparse.Namespace) -> dict[str, object]:
    """The options of `arguments`, each with its value, or None where it was not given."""
    names = ["budget", *(field.name for field in fields(Selection)), "dense_layers"]
    options = {"--" + name.replace("_", "-"): getattr(args, name) for name in names}
    return {**options, "--plain" if args.centered is False else "--centered": args.centered}


def budget(args: argparse.Namespace) -> int:
    """The budget of the arguments, or the usual one."""
    return BUDGET if args.budget is None else int(args.budget)


def selection(args: argparse.Namespace) -> Selection:
    """The selection of the arguments.

    It is checked against the budget and the kind of codes, too, before a model is there.
    """
    values = {field.name: getattr(args, field.name) for field in fields(Selection)}
    try:
        chosen = Selection(**{name: x for name, x in values.items() if x is not None})
        if chosen.metric == "manhattan":
            no_effect({"--query-bits": args.query_bits}, "with --metric=manhattan")
        checks.forced("Selection", budget(args), chosen)
        KVCache(1, chosen, centered=args.centered)
    except ValueError as error:
        raise ValueError(re.sub(r"^(Selection|KVCache): ", "", str(error))) from None
    return chosen


def cache(
    args: argparse.Namespace, chosen: Selection, config: Config, capacity: int, backend: str
) -> KVCache:
    """The cache of a model."""
    layers, dense = config.layers, args.dense_layers or 0
    if dense > layers:
        raise ValueError(
            f"--dense-layers: {dense}; expected 0 to {layers}, the layers of the model"
        )
    return KVCache(
        layers,
        chosen,
        centered=args.centered,
        dense_layers=range(dense),
        windows=config.windows,
        capacity=capacity,
        backend=backend,
    )


def backend(name: str) -> str:
    """The type of the option --backend: one that can run here."""
    if name in BACKENDS:
        try:
            load(name)
        except (ImportError, RuntimeError, ValueError) as error:
            raise argparse.ArgumentTypeError(f"{name} cannot be used: {error}") from None
    return name


def kinds(options: type[Any]) -> dict[str, type]:
    """The type of each field of a dataclass; of a type or None, the type."""
    hints = get_type_hints(options)
    return {f.name: next(iter(get_args(hints[f.name])), hints[f.name]) for f in fields(options)}


def described(options: type[Any]) -> dict[str, tuple[str, str]]:
    """Each parameter's type and first sentence in a numpydoc docstring; none with ``-OO``."""
    found: dict[str, tuple[str, str]] = {}
    part = inspect.cleandoc(options.__doc__ or "").partition("Parameters\n----------\n")[2]
    for names, kind, text in re.findall(PARAMETER, part, re.MULTILINE):
        sentence = " ".join(text.split()).split(". ")[0].rstrip(".")
        about = (kind.replace('"', "").replace(" ", ""), sentence[0].lower() + sentence[1:])
        found |= dict.fromkeys(names.split(", "), about)
    return found
