"""New tokens after a prompt: prefill in chunks, then one token after the other."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from .decoder import Attention, Llama
from .weights import Array


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen from the logits. The default is greedy.

    Attributes
    ----------
    temperature : float
        At 0 the token with the largest logit is taken. Otherwise one is drawn at random, with
        probabilities softmax(logits / temperature).
    top_p : float
        Draw only from the most likely tokens: the fewest that reach this probability together.
    seed : int
        The same seed gives the same tokens.

    Raises
    ------
    ValueError
        `temperature` is negative or not finite, or `top_p` is not in (0, 1].
    """

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < math.inf:
            raise ValueError(f"temperature is {self.temperature}, expected 0 or more")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p is {self.top_p}, expected more than 0 and at most 1")

    def choose(self, logits: Array, rng: np.random.Generator) -> int:
        """A token id from logits (V,)."""
        if self.temperature == 0:
            return int(np.argmax(logits))
        p = np.exp((logits - logits.max()).astype(np.float64) / self.temperature)  # (V,)
        likeliest = np.argsort(-p, kind="stable")  # (V,)
        mass = np.cumsum(p[likeliest])  # (V,)
        count = min(int(np.searchsorted(mass, self.top_p * mass[-1])) + 1, len(mass))
        drawn = np.searchsorted(mass[:count], rng.random() * mass[count - 1], side="right")
        return int(likeliest[min(int(drawn), count - 1)])


def generate(
    model: Llama,
    prompt: Sequence[int],
    attention: Attention,
    *,
    max_tokens: int,
    sampling: Sampling = Sampling(),
    chunk: int = 256,
    on_prefill: Callable[[int, int], object] | None = None,
    stop: Collection[int] = (),
    position: int = 0,
) -> Iterator[int]:
    """Read a prompt in chunks, then yield new token ids one by one.

    Generation ends after `max_tokens`, at the end of the model's context, or before a token of
    `stop`. That token is not yielded. After a stop token the cache of `attention` holds every
    token that was yielded. Otherwise it lacks the last one.

    Parameters
    ----------
    model : Llama
    prompt : sequence of ints
        At least one token id. They follow the tokens in the cache of `attention`.
    attention : callable
        See `Llama.forward`.
    max_tokens : int
    sampling : Sampling
    chunk : int
        Prompt tokens per forward pass.
    on_prefill : callable, optional
        It is called as ``on_prefill(done, total)`` after each chunk.
    stop : collection of ints
    position : int
        Number of tokens that are already in the cache.

    Raises
    ------
    ValueError
        `chunk` is less than 1, the prompt is empty, or the prompt does not fit the context. It is
        raised when the first token is asked for.
    """
    if chunk < 1:
        raise ValueError(f"chunk is {chunk}, expected at least 1")
    total = len(prompt)
    if total == 0:
        raise ValueError("the prompt holds no token; begin with the model's BOS token")
    room = model.config.context - position - total
    if room < 0:
        raise ValueError(
            f"{position + total} tokens do not fit the model's context of {model.config.context}"
        )

    for start in range(0, total, chunk):
        part = prompt[start : start + chunk]
        logits = model.forward(part, position, attention)  # (V,)
        position += len(part)
        if on_prefill is not None:
            on_prefill(start + len(part), total)

    rng = np.random.default_rng(sampling.seed)
    for left in reversed(range(min(max_tokens, room + 1))):
        token = sampling.choose(logits, rng)
        if token in stop:
            return
        yield token
        if left:
            logits = model.forward([token], position, attention)  # (V,)
            position += 1
