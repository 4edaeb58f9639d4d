"""Walsh-Hadamard transform along head_dim, the specification."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .layout import padded


def hadamard(x: NDArray[Any]) -> NDArray[np.float32]:
    """Transform x (..., D) of any float dtype into float32 (..., Dt).

    y = H x / sqrt(Dt), where H is the Sylvester matrix: H_1 = [1] and
    H_2n = [[H_n, H_n], [H_n, -H_n]]. A D that is no power of two is padded with zeros.
    H is symmetric and H H = Dt I, so inner products do not change.

    The bits of the result are part of the contract. x is widened to float32. Then come butterflies
    (a, b) -> (a + b, a - b) of strides 1, 2, 4, ..., Dt/2 in that order, where each sum is rounded
    to float32. Then every number is multiplied once by float32(Dt ** -0.5).
    """
    D = x.shape[-1]
    Dt = padded(D)
    y = np.zeros((*x.shape[:-1], Dt), np.float32)
    y[..., :D] = x
    stride = 1
    with np.errstate(over="ignore", invalid="ignore"):  # inf - inf is NaN, and that is the result
        while stride < Dt:
            pairs = y.reshape(*y.shape[:-1], Dt // (2 * stride), 2, stride)
            a, b = pairs[..., 0, :], pairs[..., 1, :]
            y = np.stack([a + b, a - b], axis=-2).reshape(y.shape)
            stride *= 2
        return y * np.float32(Dt**-0.5)
