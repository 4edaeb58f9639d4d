"""Objects of kernels stand alone."""

from __future__ import annotations

import ctypes
import math
import shutil
import subprocess
from pathlib import Path

import llvmlite.binding as llvm
import numpy as np
import pytest

from adamas_core.cpu.kernels._jit import opaque, outlined
from adamas_core.cpu.kernels._simd import load_float32, load_scalar_float32, sum_of
from adamas_core.cpu.native.emit import _module


@outlined
def _clipped(x):  # type: ignore[no-untyped-def]
    return max(min(x, 100), -100)


@opaque
def _sum(at, more):  # type: ignore[no-untyped-def]
    total = np.float64(sum_of(load_float32(at))) + math.exp(load_scalar_float32(at))
    return _clipped(np.int64(total)) + more // 3


def test_a_function_as_an_object_of_its_own(tmp_path: Path) -> None:
    module = _module("adamas_test_sum", _sum)
    defined = [f for f in module.functions if not f.is_declaration]
    outside = [f.name for f in defined if f.linkage != llvm.Linkage.internal]
    assert outside == ["adamas_test_sum"]
    declared = {f.name for f in module.functions if f.is_declaration}
    assert not [name for name in declared if name.startswith(("Py", "numba", "NRT"))]

    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler here")
    llvm.initialize_native_asmprinter()
    machine = llvm.Target.from_triple(module.triple).create_target_machine(reloc="pic")
    (tmp_path / "sum.o").write_bytes(machine.emit_object(module))
    # The symbol is hidden, as in the library. So another function calls it.
    (tmp_path / "call.c").write_text(
        "long adamas_test_sum(long, long);\n"
        "long call(long a, long b) { return adamas_test_sum(a, b); }\n"
    )
    target = tmp_path / "sum.so"
    command = [compiler, "-shared", "-fPIC", tmp_path / "call.c", tmp_path / "sum.o", "-lm"]
    subprocess.run([*map(str, command), "-o", str(target)], check=True)
    call = ctypes.CDLL(str(target)).call
    call.argtypes = call.restype = None
    call.argtypes, call.restype = [ctypes.c_long, ctypes.c_long], ctypes.c_long
    x = np.arange(16, dtype=np.float32)
    assert call(x.ctypes.data, -7) == 100 - 3
    x[:] = 0.5
    assert call(x.ctypes.data, 9) == int(8 + math.exp(0.5)) + 3
