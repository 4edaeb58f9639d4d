"""Walsh-Hadamard transform along head_dim."""

from __future__ import annotations

import math

import numpy as np

from adamas_core.reference.layout import padded

from . import _launch
from ._arrays import element, four_axes, strides
from ._kernels import HADAMARD
from ._launch import Array
from ._warps import THREADS, blocks, hadamard_scale, per_lane


def hadamard(x: Array) -> Array:
    """Transform x (..., D) of any float dtype into float32 (..., Dt)."""
    device = _launch.device()
    D = x.shape[-1]
    y = device.xp.empty((*x.shape[:-1], padded(D)), np.float32)
    rows = math.prod(x.shape[:-1])
    if rows:
        x = four_axes(x)
        device.launch(
            HADAMARD,
            (element(x), per_lane(D)),
            blocks(rows),
            THREADS,
            {
                **strides("x", x),
                "heads": x.shape[1],
                "tokens": x.shape[2],
                "rows": rows,
                "D": D,
                "Dt": padded(D),
                "hadamard_scale": hadamard_scale(D),
                "y": y,
            },
        )
    return y
