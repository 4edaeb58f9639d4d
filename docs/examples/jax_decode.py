"""A decoder loop as one compiled JAX program: every step appends and attends, in place, in a scan.

The decoder is one layer that recites. The key of a token is the word before it, and its value is
the word itself. So a query by the last word finds the word that followed it earlier.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax

jax.config.update("jax_platforms", "cpu")  # before its first array

import jax.numpy as jnp  # noqa: E402

from adamas_core.jax import Cache, append, decode_attention, init  # noqa: E402

H, H_KV, D, WORDS, STEPS, BUDGET = 8, 2, 64, 4000, 100, 16
AS_KEYS, AS_VALUES = jax.random.normal(jax.random.key(0), (2, WORDS, H_KV, D))


def appended(cache: Cache, before: Any, words: Any) -> Cache:
    """The cache with words (L,); `before` are the words before them."""
    return append(cache, AS_KEYS[before].swapaxes(0, 1), AS_VALUES[words].swapaxes(0, 1))


@partial(jax.jit, static_argnames="budget", donate_argnums=0)
def recite(cache: Cache, before: Any, word: Any, budget: int | None) -> tuple[Cache, Any]:
    """The cache after STEPS more words, and the words (STEPS,)."""

    def step(state: tuple[Cache, Any, Any], _: None) -> tuple[Any, Any]:
        cache, before, word = state
        cache = appended(cache, before[None], word[None])
        q = jnp.repeat(4 * AS_KEYS[word], H // H_KV, axis=0)[:, None]  # (H, 1, D)
        out = decode_attention(q, cache, budget)
        means = out.reshape(H_KV, -1, D).mean(axis=1)  # of the query heads of a KV head
        following = jnp.einsum("hd,whd->w", means, AS_VALUES).argmax()
        return (cache, word, following), following

    (cache, _, _), words = jax.lax.scan(step, (cache, before, word), None, length=STEPS)
    return cache, words


text = jax.random.permutation(jax.random.key(1), WORDS)
begin = 1234  # recite from here
for budget in (None, BUDGET):
    cache = init(1, H_KV, D, capacity=WORDS + STEPS)
    cache = jax.jit(appended, donate_argnums=0)(cache, jnp.roll(text, 1), text)
    place = cache.k.unsafe_buffer_pointer()
    cache, words = recite(cache, text[begin - 1], text[begin], budget)
    assert cache.k.unsafe_buffer_pointer() == place  # written in place
    assert int(cache.lengths[0]) == WORDS + STEPS
    right = int((words == text[begin + 1 : begin + 1 + STEPS]).sum())
    tokens = "all tokens" if budget is None else f"{budget} tokens and the codes of the others"
    print(f"by {tokens}: {right} of {STEPS} words are right")
    assert right == STEPS
