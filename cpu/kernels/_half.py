"""float16 to float32 and back: by an instruction, or by integers on a processor without one.

LLVM turns a conversion that a processor lacks into a call of a function of the compiler's library.
Not every system has that library, and LLVM ends the process if the function is missing.
"""

from __future__ import annotations

import functools
from typing import Any

import llvmlite.binding as llvm
from llvmlite import ir
from numba.core.registry import cpu_target

from ._simd import F16, F32x16, I16x16, I32x16, constant

HALVES = ir.VectorType(F16, 16)
_FLOATS = F32x16.ir


def widen_half(builder: Any, bits: Any) -> Any:
    """Sixteen float16, given as int16, as float32."""
    if converts_halves():
        return builder.fpext(builder.bitcast(bits, HALVES), _FLOATS)
    return widen_by_integers(builder, bits)


def narrow_half(builder: Any, x: Any) -> Any:
    """Sixteen float32, rounded to the nearest even float16, as int16."""
    if converts_halves():
        return builder.bitcast(builder.fptrunc(x, HALVES), I16x16)
    return narrow_by_integers(builder, x)


@functools.cache
def converts_halves() -> bool:
    """Whether the processor that Numba compiles for converts without a call of a function."""
    module = ir.Module()
    kind = ir.FunctionType(I16x16, [I16x16])
    function = ir.Function(module, kind, "there_and_back")
    builder = ir.IRBuilder(function.append_basic_block())
    wide = builder.fpext(builder.bitcast(function.args[0], HALVES), _FLOATS)
    twice = builder.fadd(wide, wide)
    builder.ret(builder.bitcast(builder.fptrunc(twice, HALVES), I16x16))
    machine = cpu_target.target_context.codegen()._tm
    text = machine.emit_assembly(llvm.parse_assembly(str(module)))
    return not any(name in text for name in ("extendhfsf2", "truncsfhf2", "h2f_ieee", "f2h_ieee"))


def widen_by_integers(builder: Any, bits: Any) -> Any:
    """Exact. A NaN stays a NaN, of the same sign."""
    word = builder.zext(bits, I32x16)
    sign = builder.shl(builder.and_(word, _int(0x8000)), _int(16))
    size = builder.and_(word, _int(0x7FFF))
    shifted = builder.shl(size, _int(13))
    normal = builder.add(shifted, _int((127 - 15) << 23))
    not_finite = builder.or_(shifted, _int(0x7F800000))
    # A subnormal number is size * 2**-24, which is normal in float32.
    subnormal = builder.fmul(builder.uitofp(size, _FLOATS), constant(_FLOATS, 2.0**-24))
    wide = builder.select(builder.icmp_unsigned("<", size, _int(0x7C00)), normal, not_finite)
    small = builder.icmp_unsigned("<", size, _int(0x0400))
    wide = builder.select(small, builder.bitcast(subnormal, I32x16), wide)
    return builder.bitcast(builder.or_(wide, sign), _FLOATS)


def narrow_by_integers(builder: Any, x: Any) -> Any:
    """Rounded once, to nearest even. A NaN stays a NaN, of the same sign."""
    word = builder.bitcast(x, I32x16)
    sign = builder.lshr(builder.and_(word, _int(0x80000000)), _int(16))
    size = builder.and_(word, _int(0x7FFFFFFF))
    # Just under half a unit is added, or half a unit if the last bit that stays is odd. From
    # 65520 on the sum is that of infinity or more.
    odd = builder.and_(builder.lshr(size, _int(13)), _int(1))
    rounded = builder.add(builder.add(size, odd), _int(0x0FFF - ((127 - 15) << 23)))
    normal = builder.lshr(rounded, _int(13))
    # Below 2**-14 the unit is 2**-24. The sum with 0.5 is rounded to it.
    half = constant(_FLOATS, 0.5)
    sum_ = builder.fadd(builder.bitcast(size, _FLOATS), half)
    subnormal = builder.sub(builder.bitcast(sum_, I32x16), builder.bitcast(half, I32x16))
    payload = builder.and_(builder.lshr(size, _int(13)), _int(0x03FF))
    nan = builder.or_(payload, _int(0x7E00))
    small = builder.select(
        builder.icmp_unsigned("<", size, _int((127 - 14) << 23)), subnormal, normal
    )
    large = builder.icmp_unsigned(">=", size, _int(0x47800000))  # 65536
    narrow = builder.select(large, _int(0x7C00), small)
    narrow = builder.select(builder.icmp_unsigned(">", size, _int(0x7F800000)), nan, narrow)
    return builder.trunc(builder.or_(narrow, sign), I16x16)


def _int(value: int) -> ir.Constant:
    return constant(I32x16, value & 0xFFFFFFFF)
