"""Mechanisms in the place of softmax attention: from the same q, k and v, with untrained numbers.

All are run through this interface: to count what a step costs, to look for a needle, and to compare
outputs with those of full attention. Each builder says how it makes the further inputs that its
mechanism has. Letters: H query heads, H_kv KV heads, L tokens, D head_dim.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from math import isqrt
from typing import Any, NamedTuple

import numpy as np

from .indexer_fit import Indexer, untrained
from .mechanisms import (
    delta_rule,
    differential,
    dsa_indexer,
    flash_tiles,
    gated_attention,
    kimi_delta,
    latent_attention,
    linear_attention,
    log_linear,
    lolcats,
    looped_decoder,
    mosa,
    multi_token,
    selected_tokens,
    softmax_attention,
    sparse_patterns,
    star_attention,
)
from .mechanisms.tokens import Array, sigmoid
from .selectors import SELECTORS

BUDGET = 128  # tokens that are chosen
WINDOW = 128
HOSTS = 8
D_R = 16  # of MLA's shared key
LEVELS = 24  # of log-linear attention: enough for 2 ** 23 tokens
KERNEL = (6, 11)  # queries and keys of multi-token attention's convolution, as in its paper
LOOPS = 4


class Sizes(NamedTuple):
    """Of the q, k and v that a mechanism is built for."""

    H: int
    H_kv: int
    D: int
    S: int  # tokens, at which patterns and blocks are laid out


class DropIn(NamedTuple):
    """A mechanism as a cache and a step, as softmax attention is."""

    start: Callable[[Array, Array, Array], Any]  # (q, k, v) of tokens: (H, L, D), (H_kv, L, D)
    step: Callable[[Any, Array, Array, Array], Array]  # (state, q, k, v) of a token: (H, D)
    prefill: Callable[[Array, Array, Array], Array] | None = None  # None: as steps
    filled: Callable[[Array, Array, Array], Any] | None = None  # a state as large as start's


def _random(s: Sizes, *shape: int) -> Array:
    """Normal numbers that do not change a row's length on average, in float32."""
    rng = np.random.default_rng(s.D)
    return rng.standard_normal(shape).astype(np.float32) / np.float32(shape[-1] ** 0.5)


def _spread(x: Array, s: Sizes) -> Array:
    """Each KV head (H_kv, ...) once per query head of its group: (H, ...)."""
    return np.repeat(x, s.H // s.H_kv, axis=0)


def _unit(x: Array) -> Array:
    out: Array = x / np.sqrt((x * x).sum(axis=-1, keepdims=True))
    return out


def softmax(s: Sizes) -> DropIn:
    m = softmax_attention
    return DropIn(lambda q, k, v: m.start(k, v), m.step, m.parallel)


def flash(s: Sizes) -> DropIn:
    m = flash_tiles
    return DropIn(lambda q, k, v: m.start(k, v), m.step, m.chunked)


def _pattern(pattern: sparse_patterns.Pattern) -> DropIn:
    m = sparse_patterns
    return DropIn(lambda q, k, v: m.start(k, v, pattern), m.step)


def window(s: Sizes) -> DropIn:
    return _pattern(sparse_patterns.Local(WINDOW))


def strided(s: Sizes) -> DropIn:
    """The stride is the root of S."""
    return _pattern(sparse_patterns.Strided(isqrt(s.S)))


def fixed(s: Sizes) -> DropIn:
    """The block is the root of S."""
    return _pattern(sparse_patterns.Fixed(isqrt(s.S)))


def selected(name: str, s: Sizes) -> DropIn:
    """A selector of the lab, fitted to all tokens of the prefill."""
    m, method = selected_tokens, SELECTORS[name]
    return DropIn(lambda q, k, v: m.start(k, v, method.fit(q, k), BUDGET), m.step)


def dsa(s: Sizes, indexer: Indexer | None = None) -> DropIn:
    """The DSA indexer. Untrained, it is one random projection of queries and keys."""
    m, own = dsa_indexer, indexer or untrained(s.H, s.H_kv, s.D)

    def step(state: Any, q: Array, k: Array, v: Array) -> Array:
        given = own.inputs(q[:, None], k[:, None])  # each with one token
        return m.step(state, q, k, v, *(x[:, 0] for x in given))

    return DropIn(
        lambda q, k, v: m.start(k, v, own.inputs(q, k)[1], BUDGET),
        step,
        lambda q, k, v: m.parallel(q, k, v, *own.inputs(q, k), BUDGET),
    )


def routed(s: Sizes) -> DropIn:
    """MoSA. Untrained: the router is a random vector per head, and it reads the key."""
    m, w = mosa, 8 * _random(s, s.H, s.D)

    def scores(k: Array) -> Array:
        return sigmoid((k.swapaxes(0, -2) * w).sum(axis=-1)).swapaxes(0, -1)

    def given(k: Array, v: Array) -> tuple[Array, Array, Array]:
        keys = _spread(k, s)
        return keys, _spread(v, s), scores(keys)

    def step(state: Any, q: Array, k: Array, v: Array) -> Array:
        keys, values, r = given(k[:, None], v[:, None])
        return m.step(state, q, keys[:, 0], values[:, 0], r[:, 0])

    return DropIn(
        lambda q, k, v: m.start(*given(k, v), BUDGET),
        step,
        lambda q, k, v: m.parallel(q, *given(k, v), BUDGET),
    )


def star(s: Sizes) -> DropIn:
    m = star_attention

    def prefill(q: Array, k: Array, v: Array) -> Array:
        return m.chunked(q, k, v, -(-q.shape[1] // HOSTS), q.shape[1])

    return DropIn(lambda q, k, v: m.start(k, v, -(-s.S // HOSTS)), m.step, prefill)


def latent(s: Sizes) -> DropIn:
    """MLA whose latent row is all keys and values of a token, so that it is exact."""
    m, width = latent_attention, s.H_kv * s.D
    uk, uv = np.zeros((2, s.H, 2 * width, s.D), np.float32)
    for h in range(s.H):
        first = h // (s.H // s.H_kv) * s.D
        uk[h, first : first + s.D] = np.eye(s.D)
        uv[h, width + first : width + first + s.D] = np.eye(s.D)
    weights = m.Weights(uk, uv)
    gain = np.float32(((s.D + D_R) / s.D) ** 0.5)  # undoes the scale of the wider heads

    def given(k: Array, v: Array) -> tuple[Array, Array]:
        c = np.concatenate([*k, *v], axis=-1)[None]  # (1, ..., D_c)
        return c, np.zeros_like(c, shape=(*c.shape[:-1], D_R))

    def rope(q: Array) -> Array:
        return np.zeros_like(q, shape=(*q.shape[:-1], D_R))

    return DropIn(
        lambda q, k, v: m.start(*given(k, v), weights),
        lambda state, q, k, v: m.step(state, gain * q, rope(q), *given(k, v)),
        lambda q, k, v: m.parallel(gain * q, rope(q), *given(k, v), weights),
    )


def linear(s: Sizes) -> DropIn:
    m = linear_attention

    def given(k: Array, v: Array) -> tuple[Array, Array]:
        return m.phi(_spread(k, s)), _spread(v, s)

    return DropIn(
        lambda q, k, v: m.start(*given(k, v)),
        lambda state, q, k, v: m.step(state, m.phi(q), *given(k, v)),
        lambda q, k, v: m.chunked(m.phi(q), *given(k, v)),
    )


def hybrid(s: Sizes, maps: lolcats.Maps | None = None) -> DropIn:
    """LoLCATs. Without maps they are untrained: W is the identity, and gamma is 1."""
    m = lolcats
    eye = np.repeat(np.eye(s.D, dtype=np.float32)[None], s.H, axis=0)
    own = maps or m.Maps(eye, eye, np.ones(s.H, np.float32))
    return DropIn(
        lambda q, k, v: m.start(_spread(k, s), _spread(v, s), own, WINDOW),
        lambda state, q, k, v: m.step(state, q, _spread(k, s), _spread(v, s)),
    )


def fenwick(s: Sizes) -> DropIn:
    """Log-linear attention with equal weights of all levels."""
    m, phi = log_linear, linear_attention.phi
    ones = np.ones((s.H, LEVELS), np.float32)

    def given(k: Array, v: Array) -> tuple[Array, Array]:
        return phi(_spread(k, s)), _spread(v, s)

    def prefill(q: Array, k: Array, v: Array) -> Array:
        weight = np.repeat(ones[:, None], q.shape[1], axis=1)  # (H, L, J)
        return m.chunked(phi(q), *given(k, v), weight)

    return DropIn(
        lambda q, k, v: m.start(*given(k, v)),
        lambda state, q, k, v: m.step(state, phi(q), *given(k, v), ones),
        prefill,
    )


def two_maps(s: Sizes) -> DropIn:
    """Differential attention. The second map's queries are turned at random; lambda is 0.2."""
    m, turn = differential, _random(s, s.D, s.D)

    def both(q: Array) -> Array:
        return np.concatenate([q, q @ turn])  # (2 H, ..., D)

    def twice(k: Array) -> Array:
        return np.concatenate([k, k])  # (2 H_kv, ..., D)

    return DropIn(
        lambda q, k, v: m.start(twice(k), v),
        lambda state, q, k, v: m.step(state, both(q), twice(k), v, 0.2, 0.2),
        lambda q, k, v: m.parallel(both(q), twice(k), v, 0.2, 0.2),
    )


def convolved(s: Sizes) -> DropIn:
    """Multi-token attention, whose kernel changes nothing, and which mixes no heads."""
    m = multi_token
    theta = m.delta(s.H, *KERNEL).astype(np.float32)
    options = theta, np.eye(s.H, dtype=np.float32)
    return DropIn(
        lambda q, k, v: m.start(k, v, q, theta),
        lambda state, q, k, v: m.step(state, q, k, v, *options),
        lambda q, k, v: m.parallel(q, k, v, *options),
    )


def delta(s: Sizes) -> DropIn:
    """Gated DeltaNet with alpha = beta = 1: nothing fades, and each key is written whole."""
    m = delta_rule

    def given(k: Array, v: Array) -> tuple[Array, Array, Array, Array]:
        ones = np.ones((s.H, *k.shape[1:-1]), np.float32)
        return _unit(_spread(k, s)), _spread(v, s), ones, ones

    return DropIn(
        lambda q, k, v: m.start(*given(k, v)),
        lambda state, q, k, v: m.step(state, q, *given(k, v)),
        lambda q, k, v: m.chunked(q, *given(k, v)),
    )


def kimi(s: Sizes) -> DropIn:
    """KDA with alpha = beta = 1."""
    m = kimi_delta

    def given(k: Array, v: Array) -> tuple[Array, Array, Array, Array]:
        keys = _unit(_spread(k, s))
        return keys, _spread(v, s), np.ones_like(keys), np.ones((s.H, *k.shape[1:-1]), np.float32)

    return DropIn(
        lambda q, k, v: m.start(*given(k, v)),
        lambda state, q, k, v: m.step(state, q, *given(k, v)),
        lambda q, k, v: m.chunked(q, *given(k, v)),
    )


def gated(s: Sizes) -> DropIn:
    """Gated attention with all gates at 1/2."""
    m = gated_attention
    return DropIn(
        lambda q, k, v: m.start(k, v),
        lambda state, q, k, v: m.step(state, q, k, v, np.zeros_like(q)),
        lambda q, k, v: m.parallel(q, k, v, np.zeros_like(q)),
    )


def looped(s: Sizes) -> DropIn:
    """Looped decoding. The hidden state is [k, v, q, out], and each loop adds to its `out`.

    Queries have a gain of 8, because the norm before the layer takes their length.
    """
    m, parts = looped_decoder, (s.H_kv * s.D, s.H_kv * s.D, s.H * s.D, s.H * s.D)
    E, eye = sum(parts), np.eye(sum(parts), dtype=np.float32)
    k, v, q, out = np.split(eye, np.cumsum(parts)[:-1])
    columns = [x.reshape(-1, s.D, E) for x in (q, k, v)]  # (heads, D, E)
    w_q, w_k, w_v = (np.ascontiguousarray(x.swapaxes(1, 2)) for x in columns)  # (heads, E, D)
    mlp, gate = np.zeros((E, E), np.float32), np.zeros(E, np.float32)
    weights = m.Weights(8 * w_q, w_k, w_v, out.reshape(s.H, s.D, E), mlp, gate)

    def hidden(q: Array, k: Array, v: Array) -> Array:
        last = np.zeros_like(q)
        return np.concatenate([*k, *v, *q, *last], axis=-1)[None]  # (1, ..., E)

    def outputs(h: Array) -> Array:
        """The outs (H, ...) of hidden states (..., E)."""
        return np.stack(np.split(h[..., -s.H * s.D :], s.H, axis=-1))

    return DropIn(
        lambda q, k, v: m.start(hidden(q, k, v), weights, LOOPS),
        lambda state, q, k, v: outputs(m.step(state, hidden(q, k, v), weights)[0][-1]),
        lambda q, k, v: outputs(m.parallel(hidden(q, k, v), weights, LOOPS)[0][-1]),
        lambda q, k, v: [softmax_attention.start(k, v) for _ in range(LOOPS)],
    )


BUILDERS: dict[str, Callable[[Sizes], DropIn]] = {
    "softmax": softmax,
    "flash": flash,
    "window": window,
    "strided": strided,
    "fixed": fixed,
    **{
        name: partial(selected, name)
        for name in ("streaming-llm", "h2o", "quest", "sparq", "adamas", "tail-256")
    },
    "dsa": dsa,
    "mosa": routed,
    "star": star,
    "mla": latent,
    "linear": linear,
    "lolcats": hybrid,
    "log-linear": fenwick,
    "differential": two_maps,
    "multi-token": convolved,
    "gated-delta": delta,
    "kda": kimi,
    "gated": gated,
    "looped": looped,
}
