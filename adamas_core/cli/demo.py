"""Ask a small model about 8K tokens of Python's documentation, under full attention and Adamas.

The model is fetched once; the text is the documentation of the reader's own Python.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import NamedTuple

from ..cache import KVCache
from ..lab.meter import Meter
from ..lab.texts import python_documentation
from ..llama import Llama, Tokenizer, fetch, generate
from . import selecting, terminal
from .amounts import amount
from .loading import loaded
from .parser import whole, words
from .progress import bar

ANSWER = 48  # tokens at most
CONTEXT = 8192  # tokens, unless --tokens asks for more
LONGEST = max(model.context for model in fetch.MODELS.values())
LEAST = 256  # tokens of a context that has room for a question, an answer and some text
QUESTION = "In one sentence, what is the text above about?"


class Answer(NamedTuple):
    """The result of one run."""

    tokens: list[int]
    seconds: float
    meter: Meter


def arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--model",
        choices=fetch.MODELS,
        default=fetch.DEFAULT,
        help=f"the model to fetch ({fetch.DEFAULT})",
    )
    add("--question", type=words, default=QUESTION, help="another question about the text")
    add(
        "--tokens",
        type=whole(LEAST, LONGEST),
        default=CONTEXT,
        help=f"tokens to read and write, {LEAST} to the model's context ({CONTEXT})",
    )
    selecting.arguments(parser)


def run(args: argparse.Namespace) -> int:
    selection, tokens = selecting.selection(args), selecting.budget(args)
    terminal.console()  # without rich the command ends here, and not after the download
    chosen = fetch.MODELS[args.model]
    if args.tokens > chosen.context:
        raise ValueError(f"--tokens: {args.tokens}; expected {LEAST} to {chosen.context}")
    model, tokenizer = loaded(fetch.fetch(chosen), None)
    context = args.tokens
    prompt = with_documentation(tokenizer, args.question, context - ANSWER)
    cache = selecting.cache(args, selection, model.config, context, "cpu")
    begin = time.perf_counter()
    with bar(f"Reading {len(prompt)} tokens") as move:
        read(model, prompt[:-1], cache, move)
    print(
        f"{chosen.title} has read {len(prompt)} tokens of your Python's documentation in "
        f"{time.perf_counter() - begin:.0f} s.\n\n{args.question}\n"
    )
    answers = {}
    for name, budget in (("Full attention", None), (f"Adamas, budget {tokens}", tokens)):
        with bar(name):
            answer(model, prompt, cache, budget, 2, tokenizer.stop)  # loads the kernels
            answers[name] = answer(model, prompt, cache, budget, ANSWER, tokenizer.stop)
    show(answers, tokenizer, model.config.layers)
    return 0


def with_documentation(tokenizer: Tokenizer, question: str, room: int) -> list[int]:
    """As much documentation as fits, then the question: `room` tokens in all."""
    text = python_documentation()

    def asked(length: int) -> list[int]:
        if tokenizer.template is None:  # a model that continues texts and does not chat
            content = f"{text[:length]}\n\nQuestion: {question}\nAnswer:"
            return tokenizer.encode(content, special=False)
        content = f"{text[:length]}\n\n{question}"
        return tokenizer.chat([{"role": "user", "content": content}])

    # The number of tokens grows with the number of characters, so bisection finds the longest text.
    fits, above = 0, min(len(text), 8 * room)
    while above - fits > 16:
        middle = (fits + above) // 2
        if len(asked(middle)) <= room:
            fits = middle
        else:
            above = middle
    tokens = asked(fits)
    if len(tokens) > room:
        raise ValueError(
            f"--question: {len(tokens)} tokens with the words around it; expected at most {room}"
        )
    return tokens


def read(model: Llama, tokens: list[int], cache: KVCache, move: Callable[[int, int], None]) -> None:
    """Fill the cache with a prompt, densely."""
    for _ in generate(model, tokens, cache.attention(None), max_tokens=0, on_prefill=move):
        pass


def answer(
    model: Llama,
    prompt: list[int],
    cache: KVCache,
    budget: int | None,
    most: int,
    stop: frozenset[int],
) -> Answer:
    """Decode after the prompt; the cache holds all of its tokens but the last."""
    position = len(prompt) - 1
    cache.truncate(position)
    meter = Meter(cache, budget)
    begin = time.perf_counter()
    new = generate(model, prompt[-1:], meter, max_tokens=most, stop=stop, position=position)
    tokens = list(new)
    return Answer(tokens, time.perf_counter() - begin, meter)


def show(answers: dict[str, Answer], tokenizer: Tokenizer, layers: int) -> None:
    """The answers side by side, and their cost."""
    from rich.table import Table

    table = Table(title=None, show_lines=True)
    table.add_column("")
    for name in answers:
        table.add_column(name, ratio=1, overflow="fold")
    full, sparse = answers.values()

    def row(heading: str, text: Callable[[Answer], str]) -> None:
        table.add_row(heading, *map(text, answers.values()))

    row("answer", lambda a: tokenizer.decode(a.tokens).strip())
    row(
        f"attention,\n{layers} layers",
        lambda a: f"{1e3 * layers * a.meter.seconds / a.meter.calls:.1f} ms per token",
    )
    row("KV bytes read", lambda a: f"{amount(layers * a.meter.bytes / a.meter.calls)} per token")
    row("whole model", lambda a: f"{len(a.tokens) / a.seconds:.1f} tokens/s")
    terminal.show(table)

    agreed = next(
        (i for i, (a, b) in enumerate(zip(full.tokens, sparse.tokens, strict=False)) if a != b),
        min(len(full.tokens), len(sparse.tokens)),
    )
    same = (
        "the same answer"
        if full.tokens == sparse.tokens
        else (f"answers that agree in their first {agreed} tokens")
    )
    per_call = [a.meter.seconds / a.meter.calls for a in (full, sparse)]
    print(
        f"They give {same}; a step of attention is {per_call[0] / per_call[1]:.1f}x as fast and "
        f"reads {sparse.meter.dense_bytes / sparse.meter.bytes:.1f}x fewer bytes of KV cache."
    )
