"""The sizes of a comparison: those that were given, and defaults that fit them and the model."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from typing import NamedTuple

from ..lab.metrics import BATCHES


class Sizes(NamedTuple):
    """Numbers of tokens, as the options of `adamas-core compare` are called."""

    context: int
    contexts: tuple[int, ...]
    positions: int
    budgets: tuple[int, ...]
    at: int


USUAL = Sizes(8192, (1024, 2048, 4096, 8192), 512, (16, 32, 64, 128, 256, 512, 1024), 128)
QUICK = Sizes(1024, (), 64, (32, 128), 128)


def of_texts(args: argparse.Namespace, limit: int) -> Sizes:
    """The sizes for texts, on a model whose context is `limit` tokens.

    A default is at most what the given sizes and the model leave room for.
    """
    usual = QUICK if args.quick else USUAL
    context = args.context or min(usual.context, limit)
    contexts = given(args.contexts, (n for n in usual.contexts if n <= context))
    shortest = min([context, *contexts])
    positions = args.positions or max(min(usual.positions, shortest // 2), BATCHES)
    budgets = given(args.budgets, (n for n in usual.budgets if n < context)) or usual.budgets[:1]
    at = args.at or min(usual.at, max(budgets))
    if shortest <= positions:
        option = "--context" if shortest == context else "--contexts"
        if args.positions is None:
            raise ValueError(f"{option}: {shortest}; expected at least {BATCHES + 1}")
        raise ValueError(
            f"--positions: {positions}; expected fewer than {shortest}, the shortest context"
        )
    return Sizes(context, contexts, positions, budgets, at)


def of_tasks(args: argparse.Namespace, limit: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The lengths and the budgets for tasks, on a model whose context is `limit` tokens."""
    usual = QUICK if args.quick else USUAL
    contexts = given(args.contexts, (n for n in usual.contexts if n <= limit))
    return contexts, given(args.budgets, usual.budgets)


def given(numbers: list[int] | None, usual: Iterable[int]) -> tuple[int, ...]:
    """The numbers of an option, each once, or the usual ones where it was not given."""
    return tuple(dict.fromkeys(usual if numbers is None else numbers))
