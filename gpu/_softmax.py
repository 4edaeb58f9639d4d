"""The softmax that the kernels know: a scale alone."""

from __future__ import annotations

from adamas_core.reference.layout import Softmax
from adamas_core.reference.softmax import factor

from ._launch import Array


def plain_scale(softmax: Softmax | None, k: Array, v: Array) -> float:
    """The scale; a ValueError says that the GPU backend has no cap, no sinks, and no other D_v."""
    D, Dv = k.shape[-1], v.shape[-1]
    if softmax is not None and not (softmax.soft_cap is softmax.sink_logits is None):
        raise ValueError(f"the GPU backend has neither a soft cap nor sinks; got {softmax}")
    if Dv != D:
        raise ValueError(f"the GPU backend needs values of head_dim {D}, as the keys; got {Dv}")
    return factor(softmax, D)
