"""A Softmax as the kernels take it: numbers of float32, and sinks on the device."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from adamas_core.reference.layout import Softmax
from adamas_core.reference.softmax import factor

from . import _launch
from ._launch import Argument, Array

_FLOAT32 = np.finfo(np.float32)


class Weights(NamedTuple):
    """How inner products become weights."""

    scale: float
    soft_cap: float  # 0: none
    sink_logits: Array | None  # (H,), float32

    @property
    def logits(self) -> dict[str, Argument]:
        """The arguments of a kernel that makes logits."""
        return {"scale": self.scale, "soft_cap": self.soft_cap}


def weights_of(softmax: Softmax | None, head_dim: int) -> Weights:
    """The softmax of queries with this head_dim. The sinks go to the device."""
    scale = factor(softmax, head_dim)
    if softmax is None:
        return Weights(scale, 0.0, None)
    cap, sinks = softmax.soft_cap, softmax.sink_logits
    if cap is not None:  # above 0 and finite, also when a launch has rounded it to float32
        cap = float(np.clip(cap, _FLOAT32.tiny, _FLOAT32.max))
    if sinks is not None:
        sinks = _launch.device().xp.asarray(sinks)
    return Weights(scale, cap or 0.0, sinks)
