"""Walsh-Hadamard transform along head_dim."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from adamas_core.reference.layout import padded

from ._array import address_of, dtype_code, with_four_axes
from ._engine import Kernel
from ._records import Transform

_hadamard = Kernel(Transform, plan="plan_transform", work="transform_block")


def hadamard(x: NDArray) -> NDArray[np.float32]:
    """Transform x (..., D) of any float dtype into float32 (..., Dt)."""
    Dt = padded(x.shape[-1])
    y = np.empty((*x.shape[:-1], Dt), np.float32)
    if y.size:
        x = with_four_axes(x)
        x_b, x_h, x_l, _ = x.strides
        B, H, L, D = x.shape
        _hadamard(
            x=address_of(x), dtype=dtype_code(x), x_b=x_b, x_h=x_h, x_l=x_l,
            B=B, H=H, L=L, D=D, Dt=Dt, y=address_of(y),
        )  # fmt: skip
    return y
