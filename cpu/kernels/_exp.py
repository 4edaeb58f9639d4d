"""exp of sixteen float32, for attention."""

from __future__ import annotations

from typing import Any

from ._simd import F32x16, I32x16, call, constant, operation


@operation(F32x16, F32x16)
def exp(builder: Any, x: Any) -> Any:
    """exp(x) for x <= 0, to about 1 ulp, with subnormal results; NaN for NaN.

    x = n ln 2 + r with |r| <= ln 2 / 2. exp(r) is a polynomial of degree 7, whose error there is
    below 2^-27. It is multiplied by 2^n in two steps, because n goes down to -150 and the exponents
    of float32 to -126.
    """
    vector, bits = x.type, I32x16

    def fma(a: Any, b: Any, c: Any) -> Any:
        return call(builder, "llvm.fmuladd.v16f32", vector, a, b, c)

    least = constant(vector, -104.0)  # its exp rounds to 0
    x = builder.select(builder.fcmp_ordered("<", x, least), least, x)
    # Adding 1.5 * 2^23 leaves n, rounded, in the low bits of the sum.
    magic = constant(vector, 12582912.0)
    sum_ = fma(x, constant(vector, 1.4426950408889634), magic)
    n = builder.sub(builder.bitcast(sum_, bits), builder.bitcast(magic, bits))
    rounded = builder.fsub(sum_, magic)
    # ln 2 in two parts. The first has 9 bits, so n times it is exact.
    r = fma(rounded, constant(vector, -0.693359375), x)
    r = fma(rounded, constant(vector, 2.1219444e-4), r)
    y = constant(vector, 1 / 5040)
    for divisor in (720, 120, 24, 6, 2, 1, 1):
        y = fma(y, r, constant(vector, 1 / divisor))
    half = builder.ashr(n, constant(bits, 1))
    for exponent in (half, builder.sub(n, half)):
        biased = builder.shl(builder.add(exponent, constant(bits, 127)), constant(bits, 23))
        y = builder.fmul(y, builder.bitcast(biased, vector))
    return y
