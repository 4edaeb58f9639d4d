"""One choice of tokens for the query heads that share a KV head, in ways the library lacks."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from .largest import Array


def softmax(logits: Array) -> Array:
    """Mean over the heads of their softmaxes: the attention that a token captures on average."""
    p = np.exp(logits - logits.max(axis=-1, keepdims=True))
    p /= p.sum(axis=-1, keepdims=True)
    mean: Array = p.mean(axis=0, keepdims=True)
    return mean


def nearest(logits: Array) -> Array:
    """The largest logit of any head: the smallest distance, as in the paper's evaluation code."""
    best: Array = logits.max(axis=0, keepdims=True)
    return best


# Functions from the logits or negative distances (G, l, S) of a group, -inf for tokens that are
# not visible, to scores (1, l, S).
POOLINGS: dict[str, Callable[[Array], NDArray[np.generic]]] = {
    "softmax": softmax,
    "nearest": nearest,
}
