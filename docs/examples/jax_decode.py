"""A decoder loop as one compiled JAX program: every step appends and attends, in place, in a scan.

The model is small and random, so its text means nothing. It says the same under full attention and
under Adamas.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from adamas_core.jax import Cache, append, decode_attention, init

LAYERS, H, H_KV, D, WORDS = 2, 8, 2, 64, 500
PROMPT, STEPS, BUDGET = 3000, 24, 64
WIDTH = H * D

jax.config.update("jax_platforms", "cpu")


def random_weights(key: Any) -> dict[str, Any]:
    shapes = {"q": (WIDTH, H * D), "k": (WIDTH, H_KV * D), "v": (WIDTH, H_KV * D)}
    shapes |= {"o": (H * D, WIDTH)}
    keys = jax.random.split(key, len(shapes))
    weights = {
        name: jax.random.normal(one, (LAYERS, *shape)) * shape[0] ** -0.5
        for one, (name, shape) in zip(keys, shapes.items(), strict=True)
    }
    words, following = jax.random.normal(key, (2, WORDS, WIDTH))
    return {**weights, "words": words, "next": following}


def norm(x: Any) -> Any:
    return x * jax.lax.rsqrt(jnp.square(x).mean(axis=-1, keepdims=True))


def forward(
    weights: dict[str, Any], caches: list[Cache], tokens: Any, budget: int | None
) -> tuple[list[Cache], Any]:
    """The caches with new tokens (L,), and the logits (WORDS,) of the next one."""
    x = weights["words"][tokens]
    after = []
    for i, cache in enumerate(caches):
        q, k, v = (
            (norm(x) @ weights[name][i]).reshape(len(tokens), -1, D).swapaxes(0, 1)
            for name in "qkv"
        )
        cache = append(cache, k, v)
        out = decode_attention(2 * q, cache, budget)  # (H, L, D); all tokens if budget is None
        x = x + out.swapaxes(0, 1).reshape(len(tokens), -1) @ weights["o"][i]
        after.append(cache)
    return after, norm(x[-1]) @ weights["next"].T


@partial(jax.jit, donate_argnums=1)
def read(weights: dict[str, Any], caches: list[Cache], prompt: Any) -> tuple[list[Cache], Any]:
    """The caches after a prompt, which is read densely, and the first new token."""
    caches, logits = forward(weights, caches, prompt, None)
    return caches, logits.argmax()


@partial(jax.jit, static_argnames="budget", donate_argnums=1)
def generate(
    weights: dict[str, Any], caches: list[Cache], token: Any, budget: int | None
) -> tuple[list[Cache], Any]:
    """The caches after STEPS tokens, and the tokens."""

    def step(carry: Any, _: None) -> tuple[Any, Any]:
        caches, token = carry
        caches, logits = forward(weights, caches, token[None], budget)
        return (caches, logits.argmax()), token

    (caches, _), tokens = jax.lax.scan(step, (caches, token), None, length=STEPS)
    return caches, tokens


weights = random_weights(jax.random.key(0))
prompt = jax.random.randint(jax.random.key(1), (PROMPT,), 0, WORDS)
texts = {}
for budget in (None, BUDGET):
    caches = [init(1, H_KV, D, capacity=PROMPT + STEPS) for _ in range(LAYERS)]
    caches, token = read(weights, caches, prompt)
    place = caches[0].k.unsafe_buffer_pointer()
    caches, tokens = generate(weights, caches, token, budget)
    assert caches[0].k.unsafe_buffer_pointer() == place  # written in place
    texts[budget] = tokens
same = int((texts[None] == texts[BUDGET]).sum())
print(f"{PROMPT} tokens read, then {STEPS} by {BUDGET} tokens and codes of the others")
print(f"{same} of {STEPS} tokens are those of full attention: {texts[BUDGET].tolist()}")
assert same == STEPS
