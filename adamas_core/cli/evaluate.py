"""What a selector costs in quality: the last positions of a text, against full attention.

A window of a text is read densely but for its last L tokens. These run as one causal block, in
which each query chooses its own tokens in every layer. That equals decoding token by token with
the true text put in: errors travel through the layers and, through the block's own keys and
values, through the cache.

Letters: H query heads, H_kv KV heads, L positions of the block, S tokens, D head_dim, V
vocabulary, K budget, N layers.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..llama import Attention, Llama
from ..ops import attend
from ..reference.selectors import Exact, Selector
from .prefix import Prefix

Array = NDArray[np.float32]
Float64 = NDArray[np.float64]
# Neighbouring positions are correlated. Means of BATCHES runs of neighbours are nearly not, and
# their spread gives the interval: Student's t for 95% at BATCHES - 1 degrees of freedom.
BATCHES = 16
STUDENT_T = 2.131


class Mean(NamedTuple):
    """A mean over positions, and half the width of its 95% confidence interval."""

    value: float
    half: float


def batch_mean(x: NDArray[Any]) -> Mean:
    """The mean of x (L,), with the interval from the means of 16 batches of neighbours."""
    if len(x) < BATCHES:
        raise ValueError(f"{len(x)} positions; the interval of a mean takes at least {BATCHES}")
    batches = np.array([part.mean() for part in np.array_split(x.astype(np.float64), BATCHES)])
    half = STUDENT_T * batches.std(ddof=1) / math.sqrt(BATCHES)
    return Mean(float(x.mean(dtype=np.float64)), float(half))


class NextToken(NamedTuple):
    """The next token under a selector in all sparse layers, a figure a position, (L,) each."""

    kl: Float64  # of the distribution against that under full attention, nats
    loss: Float64  # -log p of the true next token
    agrees: NDArray[np.bool_]  # the likeliest token is that of full attention


class Captured(NamedTuple):
    """What a selection holds of the dense run's own attention, (N, H, L) each."""

    mass: Array  # share of the softmax that the chosen tokens have
    relative: Array  # the same, of what the oracle's choice has
    recall: Array  # share of the oracle's tokens that were chosen
    error: Array  # L2 distance of the output from full attention's, relative to that one's norm
    seconds: float  # of CPU time, to choose for a layer's block


@dataclass
class Oracle:
    """The exact top-k of the block's dense queries, for one budget."""

    budget: int
    indices: list[NDArray[np.int32]]  # a layer: (H, L, K)
    lse: list[Array]  # (H, L)


class Reading:
    """A window of a text, read densely: what every selector is held against.

    Parameters
    ----------
    model : Llama
    tokens : sequence of ints
        S tokens, and one more, which is only ever predicted.
    positions : int
        L, the tokens of the block.
    on_prefill : callable, optional
        ``on_prefill(done, total)`` after each chunk.
    """

    def __init__(
        self,
        model: Llama,
        tokens: Sequence[int],
        positions: int,
        on_prefill: Callable[[int, int], object] | None = None,
    ) -> None:
        self.tokens = np.asarray(tokens)
        self.context = len(tokens) - 1
        self.start = self.context - positions
        if positions < 1 or self.start < 1:
            raise ValueError(
                f"a window of {self.context} tokens has no prefix before {positions} positions"
            )
        self.prefix = Prefix(model, self.tokens[: self.start], positions, on_prefill)
        cache = self.prefix.cache

        self.q: list[Array] = []  # of the block: (H, L, D) a layer
        self.k: list[Array] = []  # (H_kv, L, D)
        self.v: list[Array] = []
        self.out: list[Array] = []  # (H, L, D)
        self.lse: list[Array] = []  # (H, L)

        def block(layer: int, q: Array, k: Array, v: Array) -> NDArray[Any]:
            cache.append(k, v, layer)
            out: NDArray[Any]
            out, lse = attend(q, *self.prefix.keys_values(layer), None, return_lse=True)
            for kept, x in zip(
                (self.q, self.k, self.v, self.out, self.lse), (q, k, v, out, lse), strict=True
            ):
                kept.append(np.array(x))
            return out

        self.logits = self._block(block)
        self._oracle: Oracle | None = None

    def full(self) -> NextToken:
        """The next token under full attention."""
        return next_token(self.logits, self.logits, self.tokens[self.start + 1 :])

    def next_token(
        self, fitted: Sequence[Selector], budget: int, dense_layers: int = 0
    ) -> NextToken:
        """The next token where all but the first `dense_layers` layers are sparse."""
        self.prefix.cache.truncate(self.start)
        try:
            logits = self._block(self.prefix.sparse(fitted, budget, dense_layers))
        finally:
            self._restore()
        return next_token(self.logits, logits, self.tokens[self.start + 1 :])

    def captured(self, fitted: Sequence[Selector], budget: int) -> Captured:
        """The attention that each layer's selection captures, for the dense run's queries."""
        oracle = self.oracle(budget)
        rows: list[tuple[Array, ...]] = []
        seconds = 0.0
        for layer, q in enumerate(self.q):
            keys, values = self.prefix.keys_values(layer)
            begin = time.process_time()
            indices = fitted[layer](q, keys, budget)
            seconds += time.process_time() - begin
            out, lse = attend(q, keys, values, indices, return_lse=True)
            full = self.out[layer]
            distance = np.linalg.norm(out - full, axis=-1)
            rows.append(
                (
                    np.exp(lse - self.lse[layer]),
                    np.exp(lse - oracle.lse[layer]),
                    recall(indices, oracle.indices[layer], keys.shape[1]),
                    distance / np.linalg.norm(full, axis=-1),
                )
            )
        mass, relative, found, error = (np.stack(x) for x in zip(*rows, strict=True))
        return Captured(mass, relative, found, error, seconds / len(self.q))

    def oracle(self, budget: int) -> Oracle:
        """The exact top-k of one budget; only the last one asked for is held."""
        if self._oracle is None or self._oracle.budget != budget:
            self._oracle = None  # its memory goes before more is taken
            exact = Exact()
            indices, lse = [], []
            for layer, q in enumerate(self.q):
                keys, values = self.prefix.keys_values(layer)
                indices.append(exact(q, keys, budget))
                lse.append(attend(q, keys, values, indices[-1], return_lse=True)[1])
            self._oracle = Oracle(budget, indices, lse)
        return self._oracle

    def _block(self, attention: Attention) -> Array:
        """The block's logits (L, V); the cache holds the prefix alone."""
        tokens = self.tokens[self.start : self.context]
        return self.prefix.model.forward(tokens, self.start, attention, last=False)

    def _restore(self) -> None:
        """Put the dense run's keys and values of the block back into the cache."""
        self.prefix.cache.truncate(self.start)
        for layer, (k, v) in enumerate(zip(self.k, self.v, strict=True)):
            self.prefix.cache.append(k, v, layer)


def next_token(full: Array, sparse: Array, true: NDArray[Any]) -> NextToken:
    """Figures from the logits (L, V) under full attention and under another, and the truth (L,)."""
    kl, loss = np.empty(len(true)), np.empty(len(true))
    for i, token in enumerate(true):  # a row at a time: float64 rows of all would be 200 MB each
        p, other = log_softmax(full[i]), log_softmax(sparse[i])
        kl[i] = np.exp(p) @ (p - other)
        loss[i] = -other[token]
    return NextToken(kl, loss, full.argmax(axis=-1) == sparse.argmax(axis=-1))


def log_softmax(logits: Array) -> Float64:
    """Of logits (V,), in float64."""
    x = logits.astype(np.float64) - logits.max()
    result: Float64 = x - np.log(np.exp(x).sum())
    return result


def recall(indices: NDArray[np.int32], oracle: NDArray[np.int32], S: int) -> Array:
    """Share (H, L) of the oracle's tokens (H, L, K) among the indices (H, L, any)."""
    chosen = np.zeros((*oracle.shape[:-1], S + 1), np.bool_)  # index -1 is the last place
    np.put_along_axis(chosen, indices, True, axis=-1)
    chosen[..., -1] = False
    found = np.take_along_axis(chosen, oracle, axis=-1).sum(axis=-1)
    share: Array = (found / (oracle >= 0).sum(axis=-1)).astype(np.float32)
    return share
