"""Simulated codes of keys: 1, 2 or 3 bits per coordinate, scales, and means of blocks.

Coordinate x of a key, or of key - mean, has a code c: the number of edges below it. There are
n = 2 ** bits codes, and c stands for (c - (n - 1) / 2) * step.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...codes import PAPER
from ...reference.center import RMS_SHARE, scale_byte, scale_of
from .largest import Array

RULES = ("rms", "token", "quartiles", "published")

# Steps of the uniform quantizers of 2, 4 and 8 levels with the least mean squared error for a
# normal variable (Max 1960), in units of its rms. For 4 levels, 0.9957 there, it is the library's.
STEPS = {1: 1.5957, 2: RMS_SHARE, 3: 0.5860}


def edges_of(x: Array, rule: str, bits: int) -> Array:
    """The n - 1 edges between codes, (heads, n - 1), from a sample of coordinates (heads, S, D).

    "quartiles": the sample's n-quantiles, so octiles for 3 bits and the median for 1. The other
    rules space edges evenly around 0. "rms": by STEPS times the sample's rms. "token": by STEPS,
    which is later multiplied by each token's own rms. "published": by 10, as in the paper's code.
    """
    n = 2**bits
    if rule == "quartiles":
        quantiles = np.quantile(x.reshape(len(x), -1), np.arange(1, n) / n, axis=1)
        return np.ascontiguousarray(quantiles.T, np.float32)
    step = np.full(len(x), STEPS[bits])
    if rule == "rms":
        step *= np.sqrt(np.square(x, dtype=np.float64).mean(axis=(1, 2)))
    elif rule == "published":
        step[:] = PAPER[2]
    edges: Array = np.multiply.outer(step, np.arange(1, n) - n / 2).astype(np.float32)
    return edges


def codes_of(x: Array, edges: Array, per_token: bool) -> Array:
    """Codes 0 to n - 1, as floats, of coordinates x (..., D).

    With `per_token`, edges are in units of each vector's own rms.
    """
    if per_token:
        x = np.divide(x, np.maximum(rms(x), np.finfo(np.float32).tiny), dtype=np.float32)
    codes: Array = np.searchsorted(edges, x, side="left").astype(np.float32)
    return codes


@dataclass(frozen=True)
class KeyCoder:
    """Codes for the keys of a layer; each KV head has its own edges (H_kv, n - 1)."""

    edges: Array
    per_token: bool  # see `codes_of`
    scale: bool  # a scale byte per token, else one step per head

    def steps(self, sample: Array) -> Array:
        """The step (H_kv,) by which the codes of a sample (H_kv, S, D) fit it best, per head."""
        fits = []
        for g, x in enumerate(sample):
            u: Array = self._levels(g, x)
            fits.append(np.vdot(x, u) / np.vdot(u, u))
        return np.array(fits, np.float32)

    def read_back(self, g: int, x: Array, step: np.float32) -> tuple[Array, Array]:
        """Levels u (S, D) and scales s (S, 1), with which u * s stands for x (S, D).

        Without a scale byte, s is the head's step. With one, it is |x|^2 / (x.u), which makes the
        product with x itself right, rounded to a power of 2 ** (1 / 16) that fits a byte. A token
        without a positive x.u gets the smallest scale.
        """
        u = self._levels(g, x)
        if not self.scale:
            return u, np.full((len(x), 1), step)
        along = np.vecdot(x, u)[:, None]  # (S, 1)
        fit = np.vecdot(x, x)[:, None] / np.where(along > 0, along, np.inf)
        return u, scale_of(scale_byte(fit.astype(np.float32)))

    def _levels(self, g: int, x: Array) -> Array:
        """Codes of x (S, D) minus their middle: u = c - (n - 1) / 2."""
        middle = np.float32(self.edges.shape[1] / 2)
        u: Array = codes_of(x, self.edges[g], self.per_token) - middle
        return u


def rms(x: Array) -> Array:
    """Root mean square along the last axis, which stays as 1."""
    mean: Array = np.sqrt(np.vecdot(x, x) / np.float32(x.shape[-1]))
    return mean[..., None]


def block_means(x: Array, block: int) -> tuple[Array, Array]:
    """For every token of x (S, D), the means of the block before its own and of its own block.

    Both (S, D), rounded to float16 as they are kept. The mean before the first block is 0. The
    last block's own mean covers the tokens that are there.
    """
    S = len(x)
    starts = np.arange(0, S, block)
    sums: NDArray[np.float64] = np.add.reduceat(x.astype(np.float64), starts, axis=0)
    sizes = np.minimum(starts + block, S) - starts
    means = (sums / sizes[:, None]).astype(np.float16).astype(np.float32)  # (blocks, D)
    before = np.concatenate([np.zeros_like(means[:1]), means[:-1]])
    of_token = np.arange(S) // block
    return before[of_token], means[of_token]
