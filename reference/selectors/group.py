"""One choice of tokens for the query heads that share a KV head, so that its rows are read once."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from .largest import Array

# The table of `table`: what is 16 octaves below a head's best token counts nothing.
OCTAVE = 8  # entries a factor of 2
UNIT = 16  # bits of the largest entry, and of a head's whole attention


def softmax(logits: Array) -> Array:
    """Mean over the heads of their softmaxes: the attention that a token captures on average."""
    p = np.exp(logits - logits.max(axis=-1, keepdims=True))
    p /= p.sum(axis=-1, keepdims=True)
    mean: Array = p.mean(axis=0, keepdims=True)
    return mean


def table(logits: Array) -> NDArray[np.int64]:
    """The same in integers, from a table of rint(2 ** (16 - i / 8)), i = 0 .. 135.

    i = floor((largest logit - logit) * 8 / ln 2). From integer distances d it is
    ``(d - d_min) * m >> 16`` with one multiplier m a query, and the sum of a head's entries, by
    which they are divided, comes from the histogram of d that an exact selection makes anyway:
    two passes over distances and one table look-up a token and head, no float. Entries are at
    most 2^16 and a head's sum at most 2^16 S, so 64 bits hold all; shares fit 32.
    """
    best = logits.max(axis=-1, keepdims=True)
    with np.errstate(invalid="ignore"):
        i = np.floor((best - logits) * np.float32(OCTAVE / np.log(2)))
    last = OCTAVE * (UNIT + 1)
    entries = np.rint(2.0 ** (UNIT - np.arange(last) / OCTAVE)).astype(np.int64)
    entries[-1] = 0  # what a query does not see must not add to its head's sum
    e = entries[np.minimum(i, last - 1).astype(np.int64)]  # (G, l, S)
    share = (e << UNIT) // e.sum(axis=-1, keepdims=True)
    total: NDArray[np.int64] = share.sum(axis=0, keepdims=True)
    return total


def nearest(logits: Array) -> Array:
    """The largest logit of any head: the smallest distance, as in the paper's evaluation code."""
    best: Array = logits.max(axis=0, keepdims=True)
    return best


# How the logits or negative distances (G, l, S) of a group, -inf where a query does not see the
# token, become scores (1, l, S).
GROUPS: dict[str, Callable[[Array], NDArray[np.generic]]] = {
    "softmax": softmax,
    "table": table,
    "nearest": nearest,
}
