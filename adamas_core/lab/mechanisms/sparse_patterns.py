"""Fixed sparse patterns: the sliding window, and the strided and fixed patterns.

Child et al., "Generating Long Sequences with Sparse Transformers", arXiv 1904.10509. Beltagy et
al., "Longformer", arXiv 2004.05150 (window).

A pattern says which tokens s <= t a query t attends to. The softmax is over these alone.

    local:    t - s < width
    strided:  t - s < stride, or (t - s) mod stride = 0
    fixed:    s is in t's own block, or among the last `summary` tokens of an earlier block

The paper gives the two parts of a pattern to different heads or layers. Here each head has both.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from . import softmax_attention
from .tokens import Array, Rows

Ints = NDArray[np.int64]


class Pattern(Protocol):
    """Which tokens a query attends to."""

    def sees(self, t: Ints, s: Ints) -> NDArray[np.bool_]:
        """Whether the query t attends to the token s <= t; t and s have shapes that broadcast."""

    def needed(self, t: int, s: Ints) -> NDArray[np.bool_]:
        """Whether the query t, or a later one, attends to each token s < t."""


@dataclass(frozen=True)
class Local:
    """The last `width` tokens."""

    width: int

    def sees(self, t: Ints, s: Ints) -> NDArray[np.bool_]:
        return t - s < self.width

    def needed(self, t: int, s: Ints) -> NDArray[np.bool_]:
        return t - s < self.width


@dataclass(frozen=True)
class Strided:
    """The last `stride` tokens, and every one that is a multiple of `stride` tokens back."""

    stride: int

    def sees(self, t: Ints, s: Ints) -> NDArray[np.bool_]:
        return (t - s < self.stride) | ((t - s) % self.stride == 0)

    def needed(self, t: int, s: Ints) -> NDArray[np.bool_]:
        return s < t


@dataclass(frozen=True)
class Fixed:
    """The query's own block, and the last `summary` tokens of the blocks before it."""

    block: int
    summary: int = 1

    def sees(self, t: Ints, s: Ints) -> NDArray[np.bool_]:
        return (t // self.block == s // self.block) | (s % self.block >= self.block - self.summary)

    def needed(self, t: int, s: Ints) -> NDArray[np.bool_]:
        return self.sees(np.array(t), s)


@dataclass
class Cache:
    """Keys and values of the tokens that a later query attends to."""

    k: Rows  # (H_kv, n, D)
    v: Rows  # (H_kv, n, D)
    s: Ints  # (n,), the positions of these tokens
    t: int  # tokens so far
    pattern: Pattern

    @property
    def size(self) -> int:
        return self.k.size + self.v.size


def parallel(q: Array, k: Array, v: Array, pattern: Pattern) -> Array:
    """Outputs (H, L, D) of q (H, L, D), the last L tokens of k and v (H_kv, S, D)."""
    L, S = q.shape[1], k.shape[1]
    t, s = np.arange(S - L, S)[:, None], np.arange(S)  # (L, 1), (S,)
    return softmax_attention.parallel(q, k, v, (s <= t) & pattern.sees(t, s))  # (H, L, D)


def start(k: Array, v: Array, pattern: Pattern) -> Cache:
    """The cache after k and v (H_kv, L, D)."""
    L = k.shape[1]
    (s,) = np.nonzero(pattern.needed(L, np.arange(L)))  # (n,)
    return Cache(Rows(k[:, s]), Rows(v[:, s]), s, L, pattern)


def step(state: Cache, q: Array, k: Array, v: Array) -> Array:
    """The output (H, D) of a token with q (H, D), k and v (H_kv, D). It reads the seen rows."""
    keys, values = state.k.append(k), state.v.append(v)  # (H_kv, n, D) each
    s = np.append(state.s, state.t)  # (n,)
    (seen,) = np.nonzero(state.pattern.sees(np.array(state.t), s))  # (K,)
    rows = keys[:, seen], values[:, seen]  # (H_kv, K, D) each
    everything = np.ones((1, len(seen)), np.bool_)  # (1, K)
    out = softmax_attention.parallel(q[:, None], *rows, everything)[:, 0]  # (H, D)
    state.t += 1
    needed = state.pattern.needed(state.t, s)  # (n,)
    if not needed.all():
        state.k, state.v = Rows(keys[:, needed]), Rows(values[:, needed])
    state.s = s[needed]
    return out


def kept(S: int, H_kv: int, D: int, pattern: Pattern) -> int:
    """A key and a value per token that a later query attends to."""
    return 2 * int(pattern.needed(S, np.arange(S)).sum()) * H_kv * D
