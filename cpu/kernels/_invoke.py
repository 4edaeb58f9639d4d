"""Calls of compiled functions by their address, from kernels."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic


def _invoke(typing_context, address, arguments):
    """Call the function of int64 at this address with a tuple of int64."""

    def emit(context: Any, builder: Any, sig: Any, values: Any) -> Any:
        word = ir.IntType(64)
        at, packed = values
        function = ir.FunctionType(word, [word] * len(arguments))
        pointer = builder.inttoptr(at, function.as_pointer())
        return builder.call(pointer, cgutils.unpack_tuple(builder, packed))

    return types.int64(types.int64, arguments), emit


invoke: Any = intrinsic(_invoke)
