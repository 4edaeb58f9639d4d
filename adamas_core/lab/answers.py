"""Answers to generated tasks under every variant, judged by what greedy decoding gives.

A prompt is read densely, and its question too, except for the last token. From there on all layers
are sparse. The right answer is put in as one causal block. Greedy decoding gives it if and only if
each of its tokens is the likeliest one after those before it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeAlias

import numpy as np

from ..llama import Llama, Tokenizer
from .prefix import Prefix
from .records import Record
from .selectors import SELECTORS, Method
from .tasks import Count, Prompt
from .variants import Variant

KEY = ("task", "length", "depth", "example", "selector", "budget")
FULL = Variant("full", SELECTORS["full"])
Progress: TypeAlias = Callable[[str, int, int], object]  # what is going on, done, total


def counter(tokenizer: Tokenizer) -> Count:
    """A function from a text to its number of tokens."""
    return lambda text: len(encoded(tokenizer, text))


def encoded(tokenizer: Tokenizer, text: str) -> list[int]:
    """The tokens of a text without special tokens."""
    return tokenizer.encode(text, bos=False, special=False)


def judge(
    model: Llama,
    tokenizer: Tokenizer,
    prompts: Sequence[Prompt],
    runs: Sequence[tuple[Variant, int | None]],
    record: Record,
    progress: Progress,
) -> None:
    """Ask all questions of every prompt in every run, unless the record has the result.

    A run is a variant with a budget; the budget None is full attention.
    """
    examples: dict[tuple[Any, ...], int] = {}
    for done, prompt in enumerate(prompts):
        kind = (prompt.task, prompt.length, prompt.depth)
        example = examples[kind] = examples.get(kind, -1) + 1
        missing = []
        for variant, budget in runs:
            description = describe(prompt, example, variant, budget)
            if not record.has(description):
                missing.append((variant, budget, description))
        if not missing:
            continue
        head = f"{done + 1} of {len(prompts)}: {prompt.task}, {prompt.length} tokens"
        text = tokenizer.encode(prompt.text, special=False)  # with BOS if the model expects that
        pairs = [
            (encoded(tokenizer, q.text), encoded(tokenizer, q.answer)) for q in prompt.questions
        ]
        room = max(len(question) + len(answer) for question, answer in pairs)
        prefix = Prefix(model, text, room, partial(progress, head))
        fitted: dict[str, list[Method]] = {}
        for i, (variant, budget, description) in enumerate(missing):
            progress(f"{head}, {variant.name}", i, len(missing))
            if variant.key not in fitted and budget is not None:
                fitted[variant.key] = prefix.fit(variant.selector)
            right = sum(exact(prefix, *pair, fitted.get(variant.key), budget) for pair in pairs)
            record.add({**description, "tokens": len(text), "asked": len(pairs), "right": right})


def describe(prompt: Prompt, example: int, variant: Variant, budget: int | None) -> dict[str, Any]:
    """The description of a result: all that is known before it is measured."""
    return {
        "task": prompt.task,
        "length": prompt.length,
        "depth": prompt.depth,
        "example": example,
        "selector": variant.key,
        "budget": budget,
        "name": variant.name,
        "options": repr(variant.selector),
    }


def exact(
    prefix: Prefix,
    question: list[int],
    answer: list[int],
    fitted: Sequence[Method] | None,
    budget: int | None,
) -> bool:
    """Whether greedy decoding after the question gives the answer; dense if budget is None."""
    model, position = prefix.model, prefix.length
    prefix.rewind()
    if len(question) > 1:
        model.forward(question[:-1], position, prefix.dense)
        position += len(question) - 1
    attention = prefix.dense if fitted is None or budget is None else prefix.sparse(fitted, budget)
    block = [question[-1], *answer[:-1]]
    logits = model.forward(block, position, attention, last=False)  # (len(answer), V)
    return bool(np.array_equal(logits.argmax(axis=-1), answer))
