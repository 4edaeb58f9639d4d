"""New tokens after a prompt: prefill in chunks, then one token after the other."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from .. import checks
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
    TypeError
        `temperature` or `top_p` is not a number, or `seed` is not an integer.
    ValueError
        `temperature` is negative or not finite, `top_p` is not in (0, 1], or `seed` is negative.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("temperature", "top_p"):
            checks.real("Sampling", name, getattr(self, name))
        checks.at_least("Sampling", "seed", self.seed, 0)
        if self.temperature < 0:
            raise ValueError(f"Sampling: temperature={self.temperature}; expected 0 or more")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"Sampling: top_p={self.top_p}; expected more than 0, at most 1")

    def choose(self, logits: Array, rng: np.random.Generator) -> int:
        """A token id from logits (V,), with random numbers of a generator.

        Raises
        ------
        TypeError
            rng is not a `numpy.random.Generator`.
        ValueError
            There is no logit, one is NaN or plus infinity, or all are minus infinity: then no
            token is the likeliest.
        """
        checks.instance("Sampling.choose", "rng", rng, np.random.Generator, "a NumPy Generator")
        logits = np.asarray(logits)
        largest = logits.max() if logits.ndim == 1 and logits.size else np.nan  # NaN if one is NaN
        if not np.isfinite(largest):
            raise ValueError(
                f"Sampling.choose: {checks.shown('logits', logits)} with the maximum {largest}; "
                "expected one row of numbers, none of them NaN or plus infinity and at least one "
                "finite"
            )
        if self.temperature == 0:
            return int(np.argmax(logits))
        with np.errstate(over="ignore"):  # a tiny temperature gives -inf, and p = 0
            p = np.exp((logits - largest).astype(np.float64) / self.temperature)  # (V,)
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
        See `Llama.forward`. If it has an attribute `prefill`, as `KVCache.attention` has, that
        reads the prompt. If it has an attribute `tokens`, the tokens in its cache, `position` is
        checked against it.
    max_tokens : int
        At least 0.
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
    TypeError
        A number is not an integer, or sampling is not a Sampling.
    ValueError
        A number is too small, the prompt is empty or does not fit the context. When the first token
        is asked for: the cache does not hold `position` tokens, or the prompt has an id that is not
        in the vocabulary.
    """
    where = "generate"
    checks.at_least(where, "max_tokens", max_tokens, 0)
    checks.at_least(where, "chunk", chunk, 1)
    checks.at_least(where, "position", position, 0)
    checks.instance(where, "sampling", sampling, Sampling, "a Sampling")
    if len(prompt) == 0:
        raise ValueError("the prompt holds no token; begin with the model's BOS token")
    if position + len(prompt) > model.config.context:
        raise ValueError(
            f"{position + len(prompt)} tokens do not fit the model's context of "
            f"{model.config.context}"
        )

    def read() -> Array:
        """The logits after the prompt (V,)."""
        held = getattr(attention, "tokens", position)
        if held != position:
            raise ValueError(
                f"generate: the cache of attention holds {held} tokens and position={position}; "
                "expected equal numbers: pass position, truncate the cache, or take a new one"
            )
        model.token_ids(prompt)  # a bad id in a later chunk would leave a prompt half read
        prefill = getattr(attention, "prefill", attention)
        for start in range(0, len(prompt), chunk):
            part = prompt[start : start + chunk]
            logits = model.forward(part, position + start, prefill)  # (V,)
            if on_prefill is not None:
                on_prefill(start + len(part), len(prompt))
        return logits

    def new_tokens() -> Iterator[int]:
        logits, end = read(), position + len(prompt)
        rng = np.random.default_rng(sampling.seed)
        most = min(max_tokens, model.config.context - end + 1)
        for i in range(most):
            token = sampling.choose(logits, rng)
            if token in stop:
                return
            yield token
            if i + 1 < most:
                logits = model.forward([token], end + i, attention)  # (V,)

    return new_tokens()
