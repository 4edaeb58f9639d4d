"""Vectors for Numba kernels: 512-bit types, their operators, loads and stores by address.

All of it is plain LLVM vector IR. Any CPU runs it: LLVM splits a vector where registers are
narrower. Memory is named by its address (int64), so that one compiled kernel serves every layout,
read-only or not. No access needs more than the element's own alignment.

An operation that only one file needs stands in that file.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

from llvmlite import ir
from numba.core import types
from numba.core.datamodel import models
from numba.core.extending import register_model
from numba.core.imputils import lower_builtin
from numba.core.registry import cpu_target
from numba.core.typing.templates import ConcreteTemplate, infer_global, signature

I1, I8, I16, I32, I64 = (ir.IntType(bits) for bits in (1, 8, 16, 32, 64))
AVX512 = "+avx512dq," in cpu_target.target_context.codegen().magic_tuple()[2]
F16, F32, F64 = ir.HalfType(), ir.FloatType(), ir.DoubleType()
I16x16, I32x16 = ir.VectorType(I16, 16), ir.VectorType(I32, 16)


class Vector(types.Type):
    """A Numba type that is one LLVM vector."""

    def __init__(self, element: ir.Type, lanes: int) -> None:
        self.ir = ir.VectorType(element, lanes)
        super().__init__(name=f"Vector({self.ir})")


@register_model(Vector)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, dmm: Any, fe_type: Vector) -> None:
        super().__init__(dmm, fe_type, fe_type.ir)


U64x8 = Vector(I64, 8)
F32x16 = Vector(F32, 16)


def operation(
    result: types.Type, *arguments: types.Type, operators: Sequence[Any] = ()
) -> Callable[[Callable[..., Any]], Any]:
    """Let kernels call the code that `emit(builder, *values)` generates.

    They call it by the function's name, or by `operators` where these are given.
    """

    def define(emit: Callable[..., Any]) -> Any:
        def lower(context: Any, builder: Any, sig: Any, values: Any) -> Any:
            emitted = emit(builder, *values)
            return context.get_dummy_value() if result is types.void else emitted

        for name in operators or (emit,):

            class Template(ConcreteTemplate):
                key = name
                cases = (signature(result, *arguments),)

            infer_global(name, types.Function(Template))
            lower_builtin(name, *arguments)(lower)
        return emit

    return define


# ---- pieces of IR ------------------------------------------------------------------------------


def constant(vector: ir.VectorType, value: float) -> ir.Constant:
    """The same number in all lanes."""
    return ir.Constant(vector, [value] * vector.count)


def splat(builder: Any, vector: ir.VectorType, scalar: Any) -> Any:
    """A scalar, copied to all lanes."""
    undefined = ir.Constant(vector, ir.Undefined)
    first = builder.insert_element(undefined, scalar, I32(0))
    return builder.shuffle_vector(first, undefined, constant(ir.VectorType(I32, vector.count), 0))


def call(builder: Any, name: str, result: ir.Type, *args: Any) -> Any:
    """Call the LLVM intrinsic of this full name."""
    function = builder.module.globals.get(name)
    if function is None:
        kind = ir.FunctionType(result, [arg.type for arg in args])
        function = ir.Function(builder.module, kind, name)
    return builder.call(function, args)


def element_bytes(vector: ir.VectorType) -> int:
    return {I8: 1, I16: 2, I32: 4, I64: 8, F16: 2, F32: 4}[vector.element]


def load(builder: Any, address: Any, vector: ir.VectorType) -> Any:
    pointer = builder.inttoptr(address, vector.as_pointer())
    return builder.load(pointer, align=element_bytes(vector))


def store(builder: Any, address: Any, value: Any) -> None:
    pointer = builder.inttoptr(address, value.type.as_pointer())
    builder.store(value, pointer, align=element_bytes(value.type))


def first_lanes(builder: Any, vector: ir.VectorType, count: Any) -> Any:
    """The mask of the lanes below count (int64)."""
    lanes = ir.VectorType(I64, vector.count)
    numbers = ir.Constant(lanes, list(range(vector.count)))
    return builder.icmp_signed("<", numbers, splat(builder, lanes, count))


def load_first(builder: Any, address: Any, vector: ir.VectorType, count: Any) -> Any:
    """Load the first count lanes, and zeros for the others. No byte after them is read."""
    pointer = builder.inttoptr(address, vector.as_pointer())
    name = f"llvm.masked.load.v{vector.count}{_suffix(vector)}.p0"
    mask = first_lanes(builder, vector, count)
    zeros = ir.Constant(vector, None)
    return call(builder, name, vector, pointer, I32(element_bytes(vector)), mask, zeros)


def store_first(builder: Any, address: Any, value: Any, count: Any) -> None:
    """Store the first count lanes. No byte after them is written."""
    vector = value.type
    pointer = builder.inttoptr(address, vector.as_pointer())
    name = f"llvm.masked.store.v{vector.count}{_suffix(vector)}.p0"
    mask = first_lanes(builder, vector, count)
    call(builder, name, ir.VoidType(), value, pointer, I32(element_bytes(vector)), mask)


def _suffix(vector: ir.VectorType) -> str:
    return {I16: "i16", I32: "i32", I64: "i64", F16: "f16", F32: "f32"}[vector.element]


def mask_bits(builder: Any, mask: Any) -> Any:
    """A vector of booleans as the low bits of a uint64, lane i at bit i."""
    word = builder.bitcast(mask, ir.IntType(mask.type.count))
    return word if mask.type.count == 64 else builder.zext(word, I64)


def picked(builder: Any, a: Any, b: Any, lanes: Sequence[int]) -> Any:
    """Lanes of a, and of b from number a.type.count on."""
    return builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(I32, len(lanes)), list(lanes)))


def join_masks(builder: Any, masks: Sequence[Any]) -> Any:
    """Four masks of sixteen lanes as a uint64, the first in the lowest bits."""
    low, high = (picked(builder, masks[i], masks[i + 1], range(32)) for i in (0, 2))
    return mask_bits(builder, picked(builder, low, high, range(64)))


# ---- bits of a word ----------------------------------------------------------------------------


@operation(types.int64, types.uint64)
def count_bits(builder: Any, word: Any) -> Any:
    return call(builder, "llvm.ctpop.i64", I64, word)


@operation(types.int64, types.uint64)
def highest_bit(builder: Any, word: Any) -> Any:
    """The position of the highest bit that is set, or -1 if there is none."""
    return builder.sub(I64(63), call(builder, "llvm.ctlz.i64", I64, word, I1(0)))


# ---- sixteen float32 ---------------------------------------------------------------------------


@operation(F32x16, types.float32)
def to_all(builder: Any, x: Any) -> Any:
    return splat(builder, F32x16.ir, x)


@operation(F32x16, F32x16, F32x16, operators=[operator.add, operator.iadd])
def _add(builder: Any, a: Any, b: Any) -> Any:
    return builder.fadd(a, b)


@operation(F32x16, F32x16, F32x16, operators=[operator.sub])
def _subtract(builder: Any, a: Any, b: Any) -> Any:
    return builder.fsub(a, b)


@operation(F32x16, F32x16, F32x16, operators=[operator.mul])
def _multiply(builder: Any, a: Any, b: Any) -> Any:
    return builder.fmul(a, b)


@operation(F32x16, F32x16, F32x16, operators=[operator.truediv])
def _divide(builder: Any, a: Any, b: Any) -> Any:
    return builder.fdiv(a, b)


@operation(F32x16, F32x16, operators=[abs])
def _absolute(builder: Any, a: Any) -> Any:
    return call(builder, "llvm.fabs.v16f32", F32x16.ir, a)


@operation(F32x16, F32x16, F32x16, F32x16)
def multiply_add(builder: Any, a: Any, b: Any, c: Any) -> Any:
    """a * b + c, rounded once if the CPU has an instruction for it."""
    return call(builder, "llvm.fmuladd.v16f32", F32x16.ir, a, b, c)


@operation(F32x16, F32x16, F32x16)
def larger_number(builder: Any, a: Any, b: Any) -> Any:
    """The maximum in each lane; a number wins over NaN."""
    return call(builder, "llvm.maxnum.v16f32", F32x16.ir, a, b)


def _fold(builder: Any, name: str, a: Any) -> Any:
    """Combine the lanes of a in pairs: rounding errors then grow with log2 of the lanes."""
    while a.type.count > 1:
        half = a.type.count // 2
        index = ir.VectorType(I32, half)
        undefined = ir.Constant(a.type, ir.Undefined)
        low = builder.shuffle_vector(a, undefined, ir.Constant(index, list(range(half))))
        high = builder.shuffle_vector(a, undefined, ir.Constant(index, list(range(half, 2 * half))))
        if name == "add":
            a = builder.fadd(low, high)
        else:
            a = call(builder, f"llvm.maxnum.v{half}f32", low.type, low, high)
    return builder.extract_element(a, I32(0))


@operation(types.float32, F32x16)
def sum_of(builder: Any, a: Any) -> Any:
    return _fold(builder, "add", a)


@operation(types.float32, F32x16)
def largest_of(builder: Any, a: Any) -> Any:
    return _fold(builder, "maxnum", a)


@operation(F32x16, types.int64)
def load_float32(builder: Any, address: Any) -> Any:
    return load(builder, address, F32x16.ir)


@operation(F32x16, types.int64)
def load_uint16_as_float(builder: Any, address: Any) -> Any:
    return builder.uitofp(load(builder, address, I16x16), F32x16.ir)


@operation(F32x16, types.int64, types.int64)
def load_first_float32(builder: Any, address: Any, count: Any) -> Any:
    return load_first(builder, address, F32x16.ir, count)


@operation(types.void, types.int64, F32x16)
def store_float32(builder: Any, address: Any, x: Any) -> None:
    store(builder, address, x)


@operation(types.void, types.int64, F32x16, types.int64)
def store_first_float32(builder: Any, address: Any, x: Any, count: Any) -> None:
    store_first(builder, address, x, count)


# ---- scalars and lines by address --------------------------------------------------------------


def _scalar(name: types.Type, type_: ir.Type, octets: int) -> tuple[Any, Any]:
    @operation(name, types.int64)
    def load_scalar(builder: Any, address: Any) -> Any:
        return builder.load(builder.inttoptr(address, type_.as_pointer()), align=octets)

    @operation(types.void, types.int64, name)
    def store_scalar(builder: Any, address: Any, value: Any) -> None:
        builder.store(value, builder.inttoptr(address, type_.as_pointer()), align=octets)

    return load_scalar, store_scalar


load_int64, store_int64 = _scalar(types.int64, I64, 8)
load_int32, store_int32 = _scalar(types.int32, I32, 4)
load_uint64, store_uint64 = _scalar(types.uint64, I64, 8)
load_uint32, store_uint32 = _scalar(types.uint32, I32, 4)
load_uint16, store_uint16 = _scalar(types.uint16, I16, 2)
load_int16, _ = _scalar(types.int16, I16, 2)
load_uint8, store_uint8 = _scalar(types.uint8, I8, 1)
load_scalar_float32, store_scalar_float32 = _scalar(types.float32, F32, 4)
load_float64, store_float64 = _scalar(types.float64, F64, 8)


@operation(types.voidptr, types.int64)
def pointer(builder: Any, address: Any) -> Any:
    """An address as numba.carray takes it."""
    return builder.inttoptr(address, ir.IntType(8).as_pointer())


@operation(types.void, types.int64)
def prefetch(builder: Any, address: Any) -> None:
    """Ask for a cache line that will be read soon. Any address is harmless."""
    pointer = builder.inttoptr(address, ir.IntType(8).as_pointer())
    call(builder, "llvm.prefetch.p0", ir.VoidType(), pointer, I32(0), I32(3), I32(1))
