"""Vectors for Numba kernels: 512-bit types, their operators, loads and stores by address.

All of it is plain LLVM vector IR, which any CPU runs: LLVM splits a vector where registers are
narrower. Memory is named by address (int64), so that one compiled kernel serves every layout,
read-only or not, and nothing asks for more than the element's own alignment.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.core.datamodel import models
from numba.core.extending import register_model
from numba.core.imputils import lower_builtin
from numba.core.typing.templates import ConcreteTemplate, infer_global, signature

from adamas_core.reference.center import SCALE_LEAST, SCALE_SHIFT
from adamas_core.reference.group import STEPS, WEIGHTS

I1, I8, I16, I32, I64 = (ir.IntType(bits) for bits in (1, 8, 16, 32, 64))
F16, F32 = ir.HalfType(), ir.FloatType()
_I16x16 = ir.VectorType(I16, 16)


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
    """Let kernels call what `emit(builder, *values)` generates: by its name, or by operators."""

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
    return ir.Constant(vector, [value] * vector.count)


def splat(builder: Any, vector: ir.VectorType, scalar: Any) -> Any:
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
    """Load the first count lanes, zeros behind; what lies behind is not touched."""
    pointer = builder.inttoptr(address, vector.as_pointer())
    name = f"llvm.masked.load.v{vector.count}{_suffix(vector)}.p0"
    mask = first_lanes(builder, vector, count)
    zeros = ir.Constant(vector, None)
    return call(builder, name, vector, pointer, I32(element_bytes(vector)), mask, zeros)


def store_first(builder: Any, address: Any, value: Any, count: Any) -> None:
    vector = value.type
    pointer = builder.inttoptr(address, vector.as_pointer())
    name = f"llvm.masked.store.v{vector.count}{_suffix(vector)}.p0"
    mask = first_lanes(builder, vector, count)
    call(builder, name, ir.VoidType(), value, pointer, I32(element_bytes(vector)), mask)


def _suffix(vector: ir.VectorType) -> str:
    return {I16: "i16", I32: "i32", I64: "i64", F16: "f16", F32: "f32"}[vector.element]


def mask_bits(builder: Any, mask: Any) -> Any:
    """A vector of booleans as the low bits of an uint64, lane i at bit i."""
    word = builder.bitcast(mask, ir.IntType(mask.type.count))
    return word if mask.type.count == 64 else builder.zext(word, I64)


# ---- words: eight uint64, one of each token of a group -----------------------------------------


@operation(U64x8, types.int64)
def load_words(builder: Any, address: Any) -> Any:
    """Key words, which no kernel that scores them writes: the load may be moved out of loops."""
    words = load(builder, address, U64x8.ir)
    words.set_metadata("invariant.load", builder.module.add_metadata([]))
    return words


@operation(U64x8, types.int64)
def load_word_to_all(builder: Any, address: Any) -> Any:
    """One word of a query in all lanes; it too is not written while keys are scored."""
    word = builder.load(builder.inttoptr(address, I64.as_pointer()), align=8)
    word.set_metadata("invariant.load", builder.module.add_metadata([]))
    return splat(builder, U64x8.ir, word)


@operation(U64x8)
def zero_words(builder: Any) -> Any:
    return ir.Constant(U64x8.ir, None)


@operation(U64x8, U64x8, operators=[operator.invert])
def _invert(builder: Any, a: Any) -> Any:
    return builder.not_(a)


@operation(U64x8, U64x8, U64x8, operators=[operator.xor])
def _xor(builder: Any, a: Any, b: Any) -> Any:
    return builder.xor(a, b)


@operation(U64x8, U64x8, U64x8, operators=[operator.and_])
def _and(builder: Any, a: Any, b: Any) -> Any:
    return builder.and_(a, b)


@operation(U64x8, U64x8, U64x8, operators=[operator.add, operator.iadd])
def _add_words(builder: Any, a: Any, b: Any) -> Any:
    return builder.add(a, b)


@operation(U64x8, U64x8)
def popcount(builder: Any, a: Any) -> Any:
    return call(builder, "llvm.ctpop.v8i64", U64x8.ir, a)


@operation(types.void, types.int64, U64x8)
def store_as_uint16(builder: Any, address: Any, a: Any) -> None:
    store(builder, address, builder.trunc(a, ir.VectorType(I16, 8)))


# ---- masks of 64 distances ---------------------------------------------------------------------


@operation(types.uint64, types.int64, types.int64)
def mask_at_most(builder: Any, address: Any, bound: Any) -> Any:
    """Which of the 64 uint16 at address are <= bound (0 <= bound <= 65535)."""
    vector = ir.VectorType(I16, 64)
    bounds = splat(builder, vector, builder.trunc(bound, I16))
    return mask_bits(builder, builder.icmp_unsigned("<=", load(builder, address, vector), bounds))


COUNTED = 1024  # distances that count_many looks at


@operation(types.int64, types.int64, types.int64)
def count_many(builder: Any, address: Any, bound: Any) -> Any:
    """How many of COUNTED uint16 at address are <= bound, without a mask leaving its register."""
    vector = ir.VectorType(I16, 32)
    bounds = splat(builder, vector, builder.trunc(bound, I16))
    counts = constant(vector, 0)
    for i in range(COUNTED // 32):
        distances = load(builder, builder.add(address, I64(64 * i)), vector)
        within = builder.icmp_unsigned("<=", distances, bounds)
        counts = builder.sub(counts, builder.sext(within, vector))
    total = call(builder, "llvm.vector.reduce.add.v32i16", I16, counts)
    return builder.zext(total, I64)


@operation(types.int64, types.uint64)
def count_bits(builder: Any, word: Any) -> Any:
    return call(builder, "llvm.ctpop.i64", I64, word)


@operation(types.int64, types.uint64)
def lowest_bit(builder: Any, word: Any) -> Any:
    """The number of the lowest bit that is set; 64 where none is."""
    return call(builder, "llvm.cttz.i64", I64, word, I1(0))


@operation(types.int64, types.uint64)
def highest_bit(builder: Any, word: Any) -> Any:
    """The number of the highest bit that is set; -1 where none is."""
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
    """a * b + c, rounded once where the CPU has such an instruction."""
    return call(builder, "llvm.fmuladd.v16f32", F32x16.ir, a, b, c)


@operation(F32x16, F32x16)
def round_to_even(builder: Any, a: Any) -> Any:
    return call(builder, "llvm.rint.v16f32", F32x16.ir, a)


@operation(F32x16, F32x16)
def zero_where_nan(builder: Any, a: Any) -> Any:
    number = builder.fcmp_ordered("ord", a, a)
    return builder.select(number, a, ir.Constant(a.type, None))


@operation(F32x16, F32x16, F32x16)
def larger_number(builder: Any, a: Any, b: Any) -> Any:
    """The maximum of each lane; a NaN yields to a number."""
    return call(builder, "llvm.maxnum.v16f32", F32x16.ir, a, b)


@operation(types.uint64, F32x16, F32x16)
def mask_below(builder: Any, a: Any, b: Any) -> Any:
    """The lanes where a < b; none where either is NaN."""
    return mask_bits(builder, builder.fcmp_ordered("<", a, b))


@operation(types.uint64, F32x16, types.int64)
def mask_of_bit(builder: Any, a: Any, bit: Any) -> Any:
    """Bit `bit` of every lane, each a small whole number >= 0."""
    vector = ir.VectorType(I32, 16)
    chosen = builder.shl(constant(vector, 1), splat(builder, vector, builder.trunc(bit, I32)))
    present = builder.and_(builder.fptoui(a, vector), chosen)
    return mask_bits(builder, builder.icmp_unsigned("!=", present, constant(vector, 0)))


def _fold(builder: Any, name: str, a: Any) -> Any:
    """Combine the lanes of a in pairs, so that rounding errors grow with log2 of their number."""
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


def _butterfly(stride: int) -> Any:
    @operation(F32x16, F32x16)
    def butterfly(builder: Any, x: Any) -> Any:
        """(a, b) -> (a + b, a - b) for lanes `stride` apart; a - b is made as a + (-b)."""
        index = ir.Constant(ir.VectorType(I32, 16), [i ^ stride for i in range(16)])
        partner = builder.shuffle_vector(x, x, index)
        bits = ir.VectorType(I32, 16)
        signs = ir.Constant(bits, [0x80000000 if i & stride else 0 for i in range(16)])
        signed = builder.bitcast(builder.xor(builder.bitcast(x, bits), signs), x.type)
        return builder.fadd(partner, signed)

    return butterfly


butterfly1, butterfly2, butterfly4, butterfly8 = (_butterfly(stride) for stride in (1, 2, 4, 8))


@operation(F32x16, F32x16)
def exp(builder: Any, x: Any) -> Any:
    """exp(x) for x <= 0 to about 1 ulp, NaN for NaN, denormal results included.

    x = n ln 2 + r with |r| <= ln 2 / 2; exp(r) by a polynomial of degree 7 (its error is below
    2^-27 there), times 2^n in two steps, because n reaches -150 and float32 exponents -126.
    """
    vector, bits = x.type, ir.VectorType(I32, 16)

    def fma(a: Any, b: Any, c: Any) -> Any:
        return call(builder, "llvm.fmuladd.v16f32", vector, a, b, c)

    least = constant(vector, -104.0)  # exp of it rounds to 0
    x = builder.select(builder.fcmp_ordered("<", x, least), least, x)
    # Adding 1.5 * 2^23 leaves n, rounded, in the low bits of the sum.
    magic = constant(vector, 12582912.0)
    sum_ = fma(x, constant(vector, 1.4426950408889634), magic)
    n = builder.sub(builder.bitcast(sum_, bits), builder.bitcast(magic, bits))
    rounded = builder.fsub(sum_, magic)
    # ln 2 in two parts; the first has 9 bits, so that n times it is exact.
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


# ---- centered codes: what is left behind a mean, and scales of a byte --------------------------


@operation(F32x16, F32x16, F32x16)
def zero_unless_below(builder: Any, x: Any, limit: Any) -> Any:
    """x where |x| < limit, else 0; NaN is not below."""
    size = call(builder, "llvm.fabs.v16f32", x.type, x)
    return builder.select(builder.fcmp_ordered("<", size, limit), x, ir.Constant(x.type, None))


@operation(F32x16, F32x16, F32x16, F32x16, F32x16)
def number_below(builder: Any, a: Any, b: Any, c: Any, x: Any) -> Any:
    """How many of a, b and c are below x, in each lane; none is below NaN."""
    bits = ir.VectorType(I32, 16)
    below = (builder.zext(builder.fcmp_ordered("<", t, x), bits) for t in (a, b, c))
    total = constant(bits, 0)
    for one in below:
        total = builder.add(total, one)
    return builder.uitofp(total, x.type)


@operation(types.float32, types.float32)
def square_root(builder: Any, x: Any) -> Any:
    return call(builder, "llvm.sqrt.f32", F32, x)


@operation(types.int64, types.float32)
def bits_of(builder: Any, x: Any) -> Any:
    return builder.zext(builder.bitcast(x, I32), I64)


@operation(types.float32, types.int64)
def float_of_bits(builder: Any, bits: Any) -> Any:
    return builder.bitcast(builder.trunc(bits, I32), F32)


@operation(F32x16, types.int64)
def load_scales(builder: Any, address: Any) -> Any:
    """What sixteen bytes stand for: reference/center.py's scale_of."""
    bits = ir.VectorType(I32, 16)
    byte = builder.zext(load(builder, address, ir.VectorType(I8, 16)), bits)
    word = builder.shl(builder.add(byte, constant(bits, SCALE_LEAST)), constant(bits, SCALE_SHIFT))
    return builder.bitcast(word, F32x16.ir)


@operation(F32x16, types.int64)
def load_uint16_as_float(builder: Any, address: Any) -> Any:
    return builder.uitofp(load(builder, address, _I16x16), F32x16.ir)


# ---- ranks of estimates: 32 bits that ascend as the estimate falls -----------------------------


@operation(types.void, types.int64, F32x16)
def store_ranks(builder: Any, address: Any, x: Any) -> None:
    """reference/estimate.py's rank: NaN counts as minus infinity, -0 as 0."""
    bits = ir.VectorType(I32, 16)
    x = builder.select(builder.fcmp_unordered("uno", x, x), constant(x.type, float("-inf")), x)
    word = builder.bitcast(builder.fadd(x, constant(x.type, 0.0)), bits)
    negative = builder.icmp_signed("<", word, constant(bits, 0))
    upside_down = builder.xor(word, constant(bits, 0x7FFFFFFF))
    store(builder, address, builder.select(negative, word, upside_down))


@operation(types.uint64, types.int64, types.int64)
def mask_ranks_at_most(builder: Any, address: Any, bound: Any) -> Any:
    """Which of the 64 uint32 at address are <= bound (0 <= bound < 2^32)."""
    vector = ir.VectorType(I32, 64)
    bounds = splat(builder, vector, builder.trunc(bound, I32))
    return mask_bits(builder, builder.icmp_unsigned("<=", load(builder, address, vector), bounds))


# ---- levels and weights of groups: reference/group.py ------------------------------------------


@operation(types.void, types.int64, F32x16)
def store_levels(builder: Any, address: Any, x: Any) -> None:
    """Sixteen numbers rounded down to int16, those beyond it as its ends; NaN is the least."""
    bits = ir.VectorType(I32, 16)
    least, most = constant(x.type, -32768.0), constant(x.type, 32767.0)
    x = call(builder, "llvm.floor.v16f32", x.type, x)
    x = builder.select(builder.fcmp_ordered(">", x, least), x, least)  # NaN is not above
    x = builder.select(builder.fcmp_ordered("<", x, most), x, most)
    store(builder, address, builder.trunc(builder.fptosi(x, bits), _I16x16))


@operation(types.int64, types.int64)
def largest_level(builder: Any, address: Any) -> Any:
    """Of 64 int16."""
    levels = load(builder, address, ir.VectorType(I16, 64))
    return builder.sext(call(builder, "llvm.vector.reduce.smax.v64i16", I16, levels), I64)


def _weights(builder: Any, address: Any, best: Any) -> Any:
    """Of sixteen levels at address, none of which is above `best`."""
    bits = ir.VectorType(I32, 16)
    level = builder.sext(load(builder, address, _I16x16), bits)
    i = builder.sub(splat(builder, bits, builder.trunc(best, I32)), level)
    last = constant(bits, 32 * STEPS - 1)
    i = builder.select(builder.icmp_unsigned("<", i, last), i, last)
    step = builder.and_(i, constant(bits, STEPS - 1))
    weight = constant(bits, int(WEIGHTS[0]))
    for number, value in enumerate(WEIGHTS[1:], 1):
        here = builder.icmp_unsigned("==", step, constant(bits, number))
        weight = builder.select(here, constant(bits, int(value)), weight)
    return builder.lshr(weight, builder.lshr(i, constant(bits, STEPS.bit_length() - 1)))


@operation(types.int64, types.int64, types.int64)
def sum_of_weights(builder: Any, address: Any, best: Any) -> Any:
    """Of 64 levels: at most 2^22."""
    total = constant(ir.VectorType(I32, 16), 0)
    for i in range(4):
        total = builder.add(total, _weights(builder, builder.add(address, I64(32 * i)), best))
    return builder.zext(call(builder, "llvm.vector.reduce.add.v16i32", I32, total), I64)


@operation(F32x16, types.int64, types.int64)
def weights_as_float(builder: Any, address: Any, best: Any) -> Any:
    return builder.uitofp(_weights(builder, address, best), F32x16.ir)


# ---- keys and values as they lie in memory -----------------------------------------------------


@operation(F32x16, types.int64)
def load_float32(builder: Any, address: Any) -> Any:
    return load(builder, address, F32x16.ir)


@operation(F32x16, types.int64, types.int64)
def load_first_float32(builder: Any, address: Any, count: Any) -> Any:
    return load_first(builder, address, F32x16.ir, count)


def _widen_half(builder: Any, bits: Any) -> Any:
    half = builder.bitcast(bits, ir.VectorType(F16, 16))
    return builder.fpext(half, F32x16.ir)


def _widen_bfloat16(builder: Any, bits: Any) -> Any:
    vector = ir.VectorType(I32, 16)
    word = builder.shl(builder.zext(bits, vector), constant(vector, 16))
    return builder.bitcast(word, F32x16.ir)


def _narrow_half(builder: Any, x: Any) -> Any:
    return builder.bitcast(builder.fptrunc(x, ir.VectorType(F16, 16)), ir.VectorType(I16, 16))


def _narrow_bfloat16(builder: Any, x: Any) -> Any:
    """Round to nearest even by adding just under half a unit; a NaN stays one."""
    vector = ir.VectorType(I32, 16)
    word = builder.bitcast(x, vector)
    odd = builder.and_(builder.lshr(word, constant(vector, 16)), constant(vector, 1))
    rounded = builder.add(word, builder.add(odd, constant(vector, 0x7FFF)))
    quiet = builder.or_(word, constant(vector, 0x400000))
    rounded = builder.select(builder.fcmp_unordered("uno", x, x), quiet, rounded)
    return builder.trunc(builder.lshr(rounded, constant(vector, 16)), ir.VectorType(I16, 16))


@operation(F32x16, types.int64)
def load_float16(builder: Any, address: Any) -> Any:
    return _widen_half(builder, load(builder, address, _I16x16))


@operation(F32x16, types.int64, types.int64)
def load_first_float16(builder: Any, address: Any, count: Any) -> Any:
    return _widen_half(builder, load_first(builder, address, _I16x16, count))


@operation(F32x16, types.int64)
def load_bfloat16(builder: Any, address: Any) -> Any:
    return _widen_bfloat16(builder, load(builder, address, _I16x16))


@operation(F32x16, types.int64, types.int64)
def load_first_bfloat16(builder: Any, address: Any, count: Any) -> Any:
    return _widen_bfloat16(builder, load_first(builder, address, _I16x16, count))


@operation(types.void, types.int64, F32x16)
def store_float32(builder: Any, address: Any, x: Any) -> None:
    store(builder, address, x)


@operation(types.void, types.int64, F32x16, types.int64)
def store_first_float32(builder: Any, address: Any, x: Any, count: Any) -> None:
    store_first(builder, address, x, count)


@operation(types.void, types.int64, F32x16, types.int64)
def store_first_float16(builder: Any, address: Any, x: Any, count: Any) -> None:
    store_first(builder, address, _narrow_half(builder, x), count)


@operation(types.void, types.int64, F32x16, types.int64)
def store_first_bfloat16(builder: Any, address: Any, x: Any, count: Any) -> None:
    store_first(builder, address, _narrow_bfloat16(builder, x), count)


# ---- scalars by address ------------------------------------------------------------------------


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
load_int16, store_int16 = _scalar(types.int16, I16, 2)
load_uint8, store_uint8 = _scalar(types.uint8, I8, 1)
load_scalar_float32, store_scalar_float32 = _scalar(types.float32, F32, 4)


@operation(types.voidptr, types.int64)
def pointer(builder: Any, address: Any) -> Any:
    """For numba.carray."""
    return builder.inttoptr(address, ir.IntType(8).as_pointer())


@operation(types.void, types.int64)
def prefetch(builder: Any, address: Any) -> None:
    """Ask for a cache line that will be read; any address is harmless."""
    pointer = builder.inttoptr(address, ir.IntType(8).as_pointer())
    call(builder, "llvm.prefetch.p0", ir.VoidType(), pointer, I32(0), I32(3), I32(1))


# ---- between threads ---------------------------------------------------------------------------


@operation(types.int64, types.int64)
def take_next(builder: Any, address: Any) -> Any:
    """Count the int64 at address up; what it was before. What was written earlier is seen by who
    sees the new count."""
    pointer = builder.inttoptr(address, I64.as_pointer())
    return builder.atomic_rmw("add", pointer, I64(1), "seq_cst")


@operation(types.int64, types.int64)
def load_shared(builder: Any, address: Any) -> Any:
    """The int64 at address, which other threads count up."""
    return builder.load_atomic(builder.inttoptr(address, I64.as_pointer()), "acquire", 8)


# Numba's own get_num_threads and set_num_threads keep a kernel from being cached. These call the
# same functions of its threading layer by the names that its generated code uses.


@operation(types.int64)
def threads_allowed(builder: Any) -> Any:
    function = cgutils.get_or_insert_function(
        builder.module, ir.FunctionType(I64, []), "get_num_threads"
    )
    return builder.call(function, [])


@operation(types.void, types.int64)
def allow_threads(builder: Any, count: Any) -> None:
    function = cgutils.get_or_insert_function(
        builder.module, ir.FunctionType(ir.VoidType(), [I32]), "set_num_threads"
    )
    builder.call(function, [builder.trunc(count, I32)])
