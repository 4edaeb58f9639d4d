"""Generate text with a model of your own, through full or Adamas attention."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from ..cache import KVCache
from ..checks import METRICS
from ..dispatch import BACKENDS
from ..lab.meter import Meter
from ..llama import Sampling, generate, load, load_tokenizer
from ..selection import Selection
from .amounts import amount
from .progress import bar


def arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--model",
        type=Path,
        required=True,
        help="a GGUF file, a Hugging Face folder or a llama2.c .bin file",
    )
    add("--tokenizer", type=Path, help="the tokenizer, if it is not beside the model")
    prompt = parser.add_mutually_exclusive_group()
    prompt.add_argument("--prompt", default="", help="the text to continue")
    prompt.add_argument("--prompt-file", type=Path, help="a UTF-8 file with that text")
    add("--chat", action="store_true", help="ask the prompt as a question, in the chat template")
    add("--attention", choices=["adamas", "full"], default="adamas")
    add("--budget", type=int, default=128, help="tokens that a query head attends to (128)")
    add("--metric", choices=METRICS, default="weighted")
    add("--query-bits", type=int, default=4, help="bits of the weighted metric's query, 2 to 8 (4)")
    add("--sinks", type=int, default=0, help="first tokens that are always attended to (0)")
    add("--recent", type=int, default=0, help="last tokens that are always attended to (0)")
    add("--dense-layers", type=int, default=0, help="first layers that stay dense (0)")
    add("--backend", choices=BACKENDS, default="cpu")
    add("--max-tokens", type=int, default=200)
    add("--temperature", type=float, default=0.0, help="0 is greedy")
    add("--top-p", type=float, default=1.0)
    add("--seed", type=int, default=0)


def run(args: argparse.Namespace) -> int:
    prompt = args.prompt_file.read_text(encoding="utf-8") if args.prompt_file else args.prompt
    model = load(args.model)
    tokenizer = load_tokenizer(args.tokenizer or args.model).padded(model.config.vocab)
    if args.chat:
        tokens = tokenizer.chat([{"role": "user", "content": prompt}])
    else:
        tokens = tokenizer.encode(prompt, special=False)
    cache = KVCache(
        model.config.layers,
        Selection(args.metric, args.query_bits, args.sinks, args.recent),
        dense_layers=range(args.dense_layers),
        capacity=min(len(tokens) + args.max_tokens, model.config.context),
        backend=args.backend,
    )
    meter = Meter(cache, args.budget if args.attention == "adamas" else None)
    text = tokenizer.stream(start=not prompt)
    begin = time.perf_counter()
    first = begin
    count = 0
    with bar("Reading the prompt") as move:
        new_tokens = generate(
            model,
            tokens,
            meter,
            max_tokens=args.max_tokens,
            sampling=Sampling(args.temperature, args.top_p, args.seed),
            on_prefill=move,
            stop=tokenizer.stop,
        )
        token = next(new_tokens, None)
        first = time.perf_counter()
    while token is not None:
        count += 1
        print(text.push(token), end="", flush=True)
        token = next(new_tokens, None)
    print(text.end())
    report(len(tokens), first - begin, count, time.perf_counter() - first, meter)
    return 0


def report(prompt: int, prefill: float, count: int, seconds: float, meter: Meter) -> None:
    """Print the figures of a run on stderr."""
    print(f"\nprompt {prompt} tokens in {prefill:.1f} s, then {count} tokens", file=sys.stderr)
    if meter.calls:
        steps = max(count - 1, 1)  # the first token comes out of the prefill
        fewer = meter.dense_bytes / meter.bytes
        print(
            f"{steps / seconds:.1f} tokens/s; attention takes {meter.seconds / seconds:.0%} of "
            f"the time and reads {amount(meter.bytes / steps)} of KV cache per token, full "
            f"attention {amount(meter.dense_bytes / steps)} ({fewer:.1f}x)",
            file=sys.stderr,
        )
