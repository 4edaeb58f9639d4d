"""What is kept of the keys: codes of 1, 2 or 3 bits a coordinate, a scale, and block means.

Coordinate x of a key, or of what is left of it behind its block's mean, has the code c, the number
of edges below it, out of n = 2 ** bits. It is read back as (c - (n - 1) / 2) * step.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from adamas_core.codes import PAPER, RMS_SHARE

from .largest import Array

RULES = ("rms", "token", "quartiles", "published")

# Steps of the uniform quantizers of 2, 4 and 8 levels with the least mean squared error for a
# normal variable (Max 1960), in units of its rms. For 4 levels, 0.9957 there, it is the library's.
STEPS = {1: 1.5957, 2: RMS_SHARE, 3: 0.5860}

OCTAVE = 16  # steps of the scale byte in a factor of 2: at most 2.2% off
BIAS = 128  # the byte that stands for a scale of 1


def edges_of(x: Array, rule: str, bits: int) -> Array:
    """The n - 1 edges between codes, (heads, n - 1), from a sample of coordinates (heads, S, D).

    "quartiles": n-quantiles of the sample, so octiles of 3 bits and the median of 1. All others
    are evenly spaced around 0: by STEPS times the sample's rms; for "token" by STEPS alone, to be
    multiplied by each token's own rms; for "published" by 10, as the paper's code has them.
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
    """Codes 0 to n - 1, as floats, of coordinates x (..., D): how many of the edges are below.

    `per_token` edges are in units of each vector's own rms.
    """
    if per_token:
        x = np.divide(x, np.maximum(rms(x), np.finfo(np.float32).tiny), dtype=np.float32)
    codes: Array = np.searchsorted(edges, x, side="left").astype(np.float32)
    return codes


@dataclass(frozen=True)
class KeyCoder:
    """Codes the keys of a layer, each KV head at its own edges (H_kv, n - 1)."""

    edges: Array
    per_token: bool  # see `codes_of`
    scale: bool  # a byte a token, else one step a head

    def steps(self, sample: Array) -> Array:
        """(H_kv,): the step a head by which codes fit a sample (H_kv, S, D) best."""
        fits = []
        for g, x in enumerate(sample):
            u: Array = self._centred(g, x)
            fits.append(np.vdot(x, u) / np.vdot(u, u))
        return np.array(fits, np.float32)

    def read_back(self, g: int, x: Array, step: np.float32) -> tuple[Array, Array]:
        """Centred codes u (S, D), and s (S, 1), such that u * s stands for x (S, D).

        Without a scale byte s is the head's step. With one it is that of the token: |x|^2 over
        x.u, by which the product with x itself is right, as a power of 2 ** (1 / 16) that fits
        a byte. A token that gives no such number has the smallest.
        """
        u = self._centred(g, x)
        if not self.scale:
            return u, np.full((len(x), 1), step)
        along = np.vecdot(x, u)[:, None]  # (S, 1)
        fit = np.vecdot(x, x)[:, None] / np.where(along > 0, along, np.inf)
        with np.errstate(divide="ignore"):
            byte = np.clip(np.rint(np.log2(fit) * OCTAVE) + BIAS, 0, 255)
        return u, np.exp2((byte - BIAS) / OCTAVE).astype(np.float32)

    def _centred(self, g: int, x: Array) -> Array:
        middle = np.float32(self.edges.shape[1] / 2)
        u: Array = codes_of(x, self.edges[g], self.per_token) - middle
        return u


def rms(x: Array) -> Array:
    """Root mean square along the last axis, which stays as 1."""
    mean: Array = np.sqrt(np.vecdot(x, x) / np.float32(x.shape[-1]))
    return mean[..., None]


def block_means(x: Array, block: int) -> tuple[Array, Array]:
    """For every token of x (S, D) the mean of the block before its own, and of its own.

    Both (S, D), in float16's values, as they are kept. Nothing is before the first block: 0. The
    last block's own mean is that of the tokens which are there.
    """
    S = len(x)
    starts = np.arange(0, S, block)
    sums: NDArray[np.float64] = np.add.reduceat(x.astype(np.float64), starts, axis=0)
    sizes = np.minimum(starts + block, S) - starts
    means = (sums / sizes[:, None]).astype(np.float16).astype(np.float32)  # (blocks, D)
    before = np.concatenate([np.zeros_like(means[:1]), means[:-1]])
    of_token = np.arange(S) // block
    return before[of_token], means[of_token]
