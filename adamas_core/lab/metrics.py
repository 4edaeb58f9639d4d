"""The figures of a selection: next token, captured attention, and means with intervals.

Letters: H query heads, L positions, S tokens, V vocabulary, K budget, N layers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]
Float64 = NDArray[np.float64]
# Neighboring positions are correlated. Means of BATCHES runs of neighbors are nearly not, and their
# spread gives the interval: Student's t for 95% at BATCHES - 1 degrees of freedom.
BATCHES = 16
STUDENT_T = 2.131


class Mean(NamedTuple):
    """A mean over positions, and half the width of its 95% confidence interval."""

    value: float
    half: float


def batch_mean(x: NDArray[Any]) -> Mean:
    """The mean of x (L,), with the interval from the means of 16 batches of neighbors."""
    if len(x) < BATCHES:
        raise ValueError(f"{len(x)} positions; expected at least {BATCHES}, for an interval")
    batches = np.array([part.mean() for part in np.array_split(x.astype(np.float64), BATCHES)])
    half = STUDENT_T * batches.std(ddof=1) / math.sqrt(BATCHES)
    return Mean(float(x.mean(dtype=np.float64)), float(half))


class NextToken(NamedTuple):
    """Figures of the next token's distribution per position, (L,) each."""

    kl: Float64  # from the distribution under full attention, nats
    loss: Float64  # -log p of the true next token
    agrees: NDArray[np.bool_]  # whether the likeliest token is that of full attention


class Choice(NamedTuple):
    """How much of the dense run's attention the chosen tokens have: (H, L), or (N, H, L) each."""

    mass: Array  # share of the softmax that the chosen tokens have
    relative: Array  # mass, divided by the mass of the oracle's choice
    recall: Array  # share of the oracle's tokens that were chosen
    seconds: float  # CPU time to choose for a layer's block

    @classmethod
    def of_layers(cls, layers: Sequence[Choice]) -> Choice:
        """The choices of N layers as one, with the mean of their times."""
        *arrays, seconds = zip(*layers, strict=True)
        mass, relative, found = (np.stack(x) for x in arrays)
        return cls(mass, relative, found, sum(seconds) / len(seconds))


class Captured(NamedTuple):
    """How near the attention comes to the dense run's, for its queries."""

    error: Array  # (N, H, L): L2 distance from full attention's output, in units of its norm
    choice: Choice | None  # None for a form, which chooses no tokens


def next_token(full: Array, sparse: Array, true: NDArray[Any]) -> NextToken:
    """Figures from logits (L, V) under full and sparse attention, and the true tokens (L,)."""
    kl, loss = np.empty(len(true)), np.empty(len(true))
    for i, token in enumerate(true):  # one row at a time: all rows in float64 would take 200 MB
        p, other = log_softmax(full[i]), log_softmax(sparse[i])
        kl[i] = np.exp(p) @ (p - other)
        loss[i] = -other[token]
    return NextToken(kl, loss, full.argmax(axis=-1) == sparse.argmax(axis=-1))


def log_softmax(logits: Array) -> Float64:
    """Log-probabilities (V,) in float64 from logits (V,)."""
    x = logits.astype(np.float64) - logits.max()
    result: Float64 = x - np.log(np.exp(x).sum())
    return result


def recall(indices: NDArray[np.int32], oracle: NDArray[np.int32], S: int) -> Array:
    """Share (H, L) of the oracle's tokens (H, L, K) that are among the indices (H, L, any)."""
    chosen = np.zeros((*oracle.shape[:-1], S + 1), np.bool_)  # index -1 is the last place
    np.put_along_axis(chosen, indices, True, axis=-1)
    chosen[..., -1] = False
    found = np.take_along_axis(chosen, oracle, axis=-1).sum(axis=-1)
    share: Array = (found / (oracle >= 0).sum(axis=-1)).astype(np.float32)
    return share
