"""Comparison of variants on texts: measure every cell of a plan that the record lacks.

A cell is one measurement: a text, a context, a variant and a budget.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, TypeAlias

from ..llama import Config, Llama, Tokenizer
from .measuring import Reading
from .records import Record
from .results import cell
from .selectors import Method, bytes_of_rows
from .texts import Text, digest
from .variants import Variant

Plan: TypeAlias = list[tuple[int, int, Variant]]  # context, budget, variant
Progress: TypeAlias = Callable[[str, int, int], object]  # what is going on, done, total

KEY = ("text", "context", "selector", "budget")


def compare(
    model: Llama,
    tokenizer: Tokenizer,
    texts: Iterable[Text],
    plan: Plan,
    positions: int,
    record: Record,
    progress: Progress,
) -> None:
    """Measure every cell of a plan on each text, unless the record has it.

    Parameters
    ----------
    positions : int
        The last tokens of a window, which are decoded sparsely.
    progress : callable
        ``progress(text, done, total)`` while a window is read and before each cell.
    """
    contexts = list(dict.fromkeys(context for context, _, _ in plan))
    if max(contexts) > model.config.context:
        raise ValueError(
            f"a context of {max(contexts)} is more than the model's {model.config.context}"
        )
    for text in texts:
        for context, window in text.windows(tokenizer, contexts).items():
            missing: dict[tuple[int, str], tuple[Variant, dict[str, Any]]] = {}
            for at, budget, variant in plan:
                if at == context:
                    description = describe(variant, text.name, window, budget, model.config)
                    if not record.has(description):
                        missing[budget, variant.key] = (variant, description)
            if not missing:
                continue
            on_prefill = partial(progress, f"Reading {context} tokens of {text.name}")
            reading = Reading(model, window, positions, on_prefill)
            measure(reading, list(missing.values()), record, progress)


def measure(
    reading: Reading,
    missing: list[tuple[Variant, dict[str, Any]]],
    record: Record,
    progress: Progress,
) -> None:
    """Add the cells of one window to the record: variants with the cells' descriptions."""
    full = reading.full()
    fitted: dict[str, list[Method]] = {}
    for done, (variant, description) in enumerate(missing):
        text, context, budget = (description[name] for name in ("text", "context", "budget"))
        progress(
            f"{done + 1} of {len(missing)}: {text}, context {context}, budget {budget}, "
            f"{variant.name}",
            done,
            len(missing),
        )
        if variant.key not in fitted:
            fitted[variant.key] = reading.prefix.fit(variant.selector)
        sparse = reading.next_token(fitted[variant.key], budget, variant.dense_layers)
        captured = reading.captured(fitted[variant.key], budget)
        record.add(cell(full, sparse, captured, description))


def describe(
    variant: Variant, text: str, window: list[int], budget: int, config: Config
) -> dict[str, Any]:
    """A cell's description: all that is known before it is measured. Bytes are per KV head."""
    D, S = config.head_dim, len(window) - 1
    row = 2 * 2 * D  # a token's key and value in float16
    of_rows = bytes_of_rows(variant.selector, D, S, budget)
    to_choose = variant.selector.bytes_read(D, S, budget)
    return {
        "text": text,
        "context": S,
        "selector": variant.key,
        "budget": budget,
        "name": variant.name,
        "options": repr(variant.selector),
        "dense_layers": variant.dense_layers,
        "window": digest(window),
        "bytes_kept": variant.selector.bytes_kept(D),
        "bytes_to_choose": to_choose,
        "bytes_of_rows": of_rows,
        "bytes_a_step": to_choose + config.heads // config.kv_heads * of_rows,
        "bytes_a_step_full": S * row,
    }
