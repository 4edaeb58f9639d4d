"""The soft cap of attention: c tanh(x / c) of sixteen float32, and of one float64."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba.core import types

from ._exp import exp
from ._jit import inlined, outlined
from ._simd import (
    F32x16,
    call,
    constant,
    load_float32,
    multiply_add,
    operation,
    splat,
    store_float32,
)

LANES = 16
SMALL = 0.6  # below it a polynomial is taken, because 1 - exp(-2 y) would lose bits

# tanh(y) / y by the square of y, up to SMALL. The error of the polynomial is below 2^-28 relative.
_RATIO = np.polynomial.chebyshev.Chebyshev.interpolate(
    lambda z: np.tanh(np.sqrt(z)) / np.sqrt(z), 5, [0, SMALL**2]
)
_COEFFICIENTS = [float(c) for c in _RATIO.convert(kind=np.polynomial.Polynomial).coef]


@operation(F32x16, F32x16, types.float32)
def capped(builder: Any, x: Any, c: Any) -> Any:
    """c tanh(x / c) in each lane for a c > 0, to 5 ulp; NaN for NaN.

    tanh(y) = (1 - t) / (1 + t) with t = exp(-2 y), or y times a polynomial where y is small.
    """
    vector = x.type
    c = splat(builder, vector, c)
    one, small = constant(vector, 1.0), constant(vector, SMALL)
    y = builder.fdiv(call(builder, "llvm.fabs.v16f32", vector, x), c)
    square = builder.fmul(y, y)
    ratio = constant(vector, _COEFFICIENTS[-1])
    for coefficient in reversed(_COEFFICIENTS[:-1]):
        ratio = multiply_add(builder, ratio, square, constant(vector, coefficient))
    t = exp(builder, builder.fmul(y, constant(vector, -2.0)))
    far = builder.fdiv(builder.fsub(one, t), builder.fadd(one, t))
    is_small = builder.fcmp_ordered("<", y, small)
    tanh = builder.select(is_small, builder.fmul(y, ratio), far)
    return call(builder, "llvm.copysign.v16f32", vector, builder.fmul(c, tanh), x)


@outlined
def cap_all(x, n, c):
    """Cap n float32, in whole vectors."""
    for i in range(0, n, LANES):
        store_float32(x + 4 * i, capped(load_float32(x + 4 * i), c))


@inlined
def cap_one(x, c):
    """c tanh(x / c) in float64, to 2^-50 c; x itself where c is 0, which is no cap."""
    return x if c == 0 else c * (1.0 - 2.0 / (math.exp(2.0 * x / c) + 1.0))
