"""Generate text with a model of your own, through full or Adamas attention."""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from typing import Any

from .. import checks, dispatch
from ..dispatch import BACKENDS, array_module
from ..lab.meter import Meter
from ..lab.texts import utf8
from ..llama import Sampling, generate
from ..llama.tokenizers import Stream
from . import selecting, streams
from .amounts import amount
from .loading import NAMES, fetched, loaded, model_name
from .parser import existing, real, whole, words
from .progress import bar

Array = Any


def arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--model",
        type=model_name,
        required=True,
        help=f"a GGUF file, a Hugging Face folder, a llama2.c .bin file, or {NAMES}, fetched",
    )
    add("--tokenizer", type=existing, help="the tokenizer, if it is not beside the model")
    prompt = parser.add_mutually_exclusive_group()
    prompt.add_argument("--prompt", type=words, default="", help="the text to continue")
    prompt.add_argument("--prompt-file", type=existing, help="a UTF-8 file with that text")
    add("--chat", action="store_true", help="ask the prompt as a question, in the chat template")
    add("--attention", choices=["adamas", "full"], default="adamas")
    add("--backend", type=selecting.backend, choices=BACKENDS, default="cpu")
    add("--max-tokens", type=whole(0), default=200, help="tokens of the answer at most (200)")
    add("--temperature", type=real, default=0.0, help="0 is greedy (0)")
    add("--top-p", type=real, default=1.0, help="draw from the likeliest tokens of this mass (1)")
    add("--seed", type=whole(0, 2**64 - 1), default=0, help="of the random draws (0)")
    selecting.arguments(parser, budget=128)


def run(args: argparse.Namespace) -> int:
    prompt = utf8(args.prompt_file) if args.prompt_file else args.prompt
    sampling = Sampling(args.temperature, args.top_p, args.seed)
    selection = selecting.selection(args)
    model, tokenizer = loaded(fetched(args.model), args.tokenizer)
    if args.chat:
        tokens = tokenizer.chat([{"role": "user", "content": prompt}])
    else:
        tokens = tokenizer.encode(prompt, special=False)
    context, layers = model.config.context, model.config.layers
    capacity = min(len(tokens) + args.max_tokens, context)
    cache = selecting.cache(args, selection, model.config, capacity, args.backend)
    checks.searchable("generate", selection, model.config.head_dim, cache.centered)
    meter = Meter(cache, args.budget if args.attention == "adamas" else None)
    text = tokenizer.stream(start=not prompt)
    begin = time.perf_counter()
    with bar("Reading the prompt") as move:
        new_tokens = generate(
            model,
            tokens,
            meter if BACKENDS[args.backend] == "cpu" else OnHost(meter, args.backend),
            max_tokens=args.max_tokens,
            sampling=sampling,
            on_prefill=move,
            stop=tokenizer.stop,
        )
        token = next(new_tokens, None)
    first = time.perf_counter()
    meter.restart()
    count = write(text, token, new_tokens)
    report(len(tokens), first - begin, count, time.perf_counter() - first, meter, layers)
    return 0


def write(text: Stream, token: int | None, more: Iterator[int]) -> int:
    """Print the tokens as they come, the first of them first; their number."""
    count = 0
    try:
        while token is not None:
            count += 1
            print(text.push(token), end="", flush=True)
            token = next(more, None)
    except KeyboardInterrupt:
        print()  # so that the next line begins at its beginning
        raise
    print(text.end())
    return count


class OnHost:
    """Attention for the decoder, whose arrays are on the host, over a cache on a device."""

    def __init__(self, meter: Meter, backend: str) -> None:
        self._meter = meter
        self._xp = array_module(backend)

    @property
    def tokens(self) -> int:
        """The tokens in the cache."""
        return self._meter.tokens

    @property
    def windows(self) -> tuple[int | None, ...]:
        """The windows of the cache's layers."""
        return self._meter.windows

    def prefill(self, layer: int, *arrays: Array) -> Array:
        """Attention for a prompt, which is dense."""
        return dispatch.on_host(self._meter.prefill(layer, *map(self._xp.asarray, arrays)))

    def __call__(self, layer: int, *arrays: Array) -> Array:
        return dispatch.on_host(self._meter(layer, *map(self._xp.asarray, arrays)))


def report(
    prompt: int, prefill: float, count: int, seconds: float, meter: Meter, layers: int
) -> None:
    """Print the figures of a run on stderr: `meter` and `seconds` are of the decode steps alone."""
    streams.tell("")
    streams.tell(f"prompt {prompt} tokens in {prefill:.1f} s, then {count} tokens")
    if meter.calls:
        steps = meter.calls / layers
        fewer = meter.dense_bytes / meter.bytes
        streams.tell(
            f"{steps / seconds:.1f} tokens/s; attention takes {meter.seconds / seconds:.0%} of "
            f"the time and reads {amount(meter.bytes / steps)} of KV cache per token, full "
            f"attention {amount(meter.dense_bytes / steps)} ({fewer:.1f}x)"
        )
