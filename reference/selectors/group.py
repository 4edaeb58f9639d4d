"""One choice of tokens for the query heads that share a KV head, so that its rows are read once."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from ..group import pool
from .largest import Array


def softmax(logits: Array) -> Array:
    """Mean over the heads of their softmaxes: the attention that a token captures on average."""
    p = np.exp(logits - logits.max(axis=-1, keepdims=True))
    p /= p.sum(axis=-1, keepdims=True)
    mean: Array = p.mean(axis=0, keepdims=True)
    return mean


def integers(logits: Array) -> Array:
    """The same as `select_topk` has it: logits in quarters of an octave, weights in integers."""
    attention: Array = pool(logits[None], np.isfinite(logits)[None], len(logits), 1)[0]
    return attention


def nearest(logits: Array) -> Array:
    """The largest logit of any head: the smallest distance, as in the paper's evaluation code."""
    best: Array = logits.max(axis=0, keepdims=True)
    return best


# How the logits or negative distances (G, l, S) of a group, -inf where a query does not see the
# token, become scores (1, l, S).
GROUPS: dict[str, Callable[[Array], NDArray[np.generic]]] = {
    "softmax": softmax,
    "integers": integers,
    "nearest": nearest,
}
