"""Walsh-Hadamard transform along head_dim."""

from __future__ import annotations

import math

import numpy as np

from . import _launch
from ._kernels import HADAMARD
from ._launch import Array
from ._rows import (
    THREADS,
    blocks,
    element,
    leading_strides,
    padded,
    per_lane,
    scale,
    with_four_axes,
)


def hadamard(x: Array) -> Array:
    """Transform x (..., D) of any float dtype into float32 (..., Dt)."""
    device = _launch.device()
    D = x.shape[-1]
    Dt = padded(D)
    y = device.xp.empty((*x.shape[:-1], Dt), np.float32)
    rows = math.prod(x.shape[:-1])
    if rows:
        x = with_four_axes(x)
        device.launch(
            HADAMARD,
            (element(x), per_lane(D)),
            blocks(rows),
            THREADS,
            (x, *leading_strides(x), *x.shape[1:3], rows, D, Dt, scale(D), y),
        )
    return y
