"""From inner products to logits, the specification."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .layout import Softmax


def factor(softmax: Softmax | None, head_dim: int) -> float:
    """The factor of the inner products: `softmax.scale`, or D ** -0.5 where none is given."""
    given = None if softmax is None else softmax.scale
    return float(head_dim**-0.5 if given is None else given)


def capped(logits: NDArray[Any], softmax: Softmax | None) -> NDArray[Any]:
    """c tanh(x / c) of logits x, with c = `softmax.soft_cap`; x itself where there is no cap."""
    if softmax is None or softmax.soft_cap is None:
        return logits
    c = softmax.soft_cap
    with np.errstate(over="ignore"):
        bounded: NDArray[Any] = c * np.tanh(logits / c)
    return bounded


def sink_of(softmax: Softmax | None, head: int) -> float:
    """The logit of a query head's sink, -inf where there is none."""
    if softmax is None or softmax.sink_logits is None:
        return -np.inf
    return float(softmax.sink_logits[head])
