"""Can a mechanism give back one token of many? A needle test, without a model.

All tokens have random keys of length 1 and random values. A query points at the key of one token,
with the logit LOGIT. Full attention then gives this token nearly all of its weight. A needle is
found if the output is nearer to its value than to the value of any other token.

Letters: H query heads, H_kv KV heads, S tokens, D head_dim.
"""

from __future__ import annotations

import numpy as np

from .drop_ins import BUILDERS, Sizes
from .mechanisms.tokens import Array

SIZES = Sizes(H=2, H_kv=1, D=64, S=4096)
NEEDLES = 16
LOGIT = 18.0


def found(name: str, s: Sizes = SIZES, needles: int = NEEDLES) -> float:
    """The share of needles that a mechanism finds, over tokens at equal distances and heads.

    The mechanism is untrained, as `drop_ins` says.
    """
    rng = np.random.default_rng(0)
    L = s.S + needles  # each query is a token of its own
    k, v = (rng.standard_normal((s.H_kv, L, s.D)).astype(np.float32) for _ in range(2))
    k /= np.linalg.norm(k, axis=-1, keepdims=True)
    q = rng.standard_normal((s.H, L, s.D)).astype(np.float32)
    at = np.linspace(0, s.S - 1, needles + 2).astype(int)[1:-1]  # (needles,)
    q[:, s.S :] = LOGIT * s.D**0.5 * np.repeat(k[:, at], s.H // s.H_kv, axis=0)
    drop_in = BUILDERS[name](s)
    state = drop_in.start(q[:, : s.S], k[:, : s.S], v[:, : s.S])
    hits = 0
    for i, needle in enumerate(at):
        t = s.S + i
        out = drop_in.step(state, q[:, t], k[:, t], v[:, t])  # (H, D)
        hits += int((nearest(out, v[:, : t + 1]) == needle).sum())
    return hits / (needles * s.H)


def nearest(out: Array, v: Array) -> Array:
    """The token (H,) whose value has the largest cosine with the output (H, D); v (H_kv, S, D)."""
    values = v / np.linalg.norm(v, axis=-1, keepdims=True)  # (H_kv, S, D)
    grouped = np.asarray(out).reshape(len(v), -1, out.shape[-1])  # (H_kv, G, D)
    cosines = (grouped @ values.swapaxes(1, 2)).reshape(len(out), -1)  # (H, S)
    best: Array = np.where(out.any(axis=-1), cosines.argmax(axis=-1), -1)  # (H,)
    return best
