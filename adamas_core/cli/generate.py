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
from .loading import MODEL, fetched, loaded, model_name
from .parser import existing, no_effect, real, whole, words
from .progress import bar

Array = Any


def arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--model", type=model_name, required=True, help=MODEL)
    add("--tokenizer", type=existing, help="the tokenizer, if it is not beside the model")
    prompt = parser.add_mutually_exclusive_group()
    text = "the text to continue; from stdin if it is not given and stdin is no terminal"
    prompt.add_argument("--prompt", type=words, help=text)
    prompt.add_argument("--prompt-file", type=existing, help="a UTF-8 file with that text")
    add("--chat", action="store_true", help="put the prompt into the model's chat template")
    add("--attention", choices=["adamas", "full"], default="adamas", help="(adamas)")
    add("--backend", type=selecting.backend, choices=BACKENDS, default="cpu", help="(cpu)")
    add("--max-tokens", type=whole(0), default=200, help="at most this many new tokens (200)")
    add("--temperature", type=real, help="0 takes the likeliest token, above 0 one is drawn (0)")
    add("--top-p", type=real, help="draw from the likeliest tokens, to this probability in all (1)")
    add("--seed", type=whole(0, 2**64 - 1), help="seed of the draws (0)")
    selecting.arguments(parser)


def run(args: argparse.Namespace) -> int:
    sampling, selection = sampling_of(args), selecting.selection(args)
    if args.attention == "full":
        no_effect(selecting.given(args), "with --attention=full")
    prompt = prompt_of(args)
    model, tokenizer = loaded(fetched(args.model), args.tokenizer)
    if args.chat:
        tokens = tokenizer.chat([{"role": "user", "content": prompt}])
    else:
        tokens = tokenizer.encode(prompt, special=False)
    context, layers = model.config.context, model.config.layers
    capacity = min(len(tokens) + args.max_tokens, context)
    cache = selecting.cache(args, selection, model.config, capacity, args.backend)
    checks.searchable("generate", selection, model.config.head_dim, cache.centered)
    meter = Meter(cache, selecting.budget(args) if args.attention == "adamas" else None)
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


def sampling_of(args: argparse.Namespace) -> Sampling:
    """How tokens are chosen."""
    values = {name: getattr(args, name) for name in ("temperature", "top_p", "seed")}
    sampling = Sampling(**{name: x for name, x in values.items() if x is not None})
    if sampling.temperature == 0:
        no_effect({"--top-p": args.top_p, "--seed": args.seed}, "at --temperature=0")
    return sampling


def prompt_of(args: argparse.Namespace) -> str:
    """The text of --prompt or --prompt-file, or else of stdin."""
    if args.prompt_file is not None:
        return utf8(args.prompt_file)
    return streams.piped() if args.prompt is None else str(args.prompt)


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
