"""Emit the functions of the kernels as one object file for one CPU level.

    python -m adamas_core.cpu.native.emit LEVEL OBJECT

Numba compiles the functions, in a process that is told the processor of the level. LLVM makes an
object of them that stands alone: position independent, without Python and Numba. The functions'
names go to a file beside it.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import llvmlite.binding as llvm
from numba.core import types
from numba.core.ccallback import CFunc
from numba.core.compiler_lock import global_compiler_lock

from ..kernels._jit import FLAGS, opaque
from ..kernels._table import FUNCTIONS
from .levels import LEVELS, symbol


def emit(level: str, target: Path) -> None:
    """Write the object file of a level."""
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    whole: Any = None
    for name, function in FUNCTIONS.items():
        module = _module(symbol(level, name), function)
        if whole is None:
            whole = module
        else:
            whole.link_in(module)
    kind = LEVELS[level]
    machine = llvm.Target.from_triple(whole.triple).create_target_machine(
        cpu=kind.cpu, features=kind.features.rstrip(","), opt=3, reloc="pic", codemodel="default"
    )
    target.write_bytes(machine.emit_object(whole))
    target.with_suffix(".json").write_text(json.dumps(list(FUNCTIONS)))


def _module(name: str, function: opaque) -> Any:
    """A function compiled to LLVM's code, with one symbol that others see."""
    source = function.source
    count = source.__code__.co_argcount
    compiled: Any = CFunc(source, ((types.int64,) * count, types.int64), {}, dict(FLAGS))
    with global_compiler_lock:
        result = compiled._compile_uncached()
        result.library.finalize()  # links and optimises all that the function calls
        text = result.library.get_llvm_str()
    own = result.fndesc.llvm_func_name
    arguments = ", ".join(f"i64 %{i}" for i in range(count))
    # Numba's functions return a status, which here is always that of success.
    entry = f"""
define hidden i64 @{name}({arguments}) {{
  %result = alloca i64
  %error = alloca ptr
  %status = call i32 @{own}(ptr %result, ptr %error, {arguments})
  %value = load i64, ptr %result
  ret i64 %value
}}
"""
    module = llvm.parse_assembly(text + entry)
    for each in (*module.functions, *module.global_variables):
        if not each.is_declaration and each.name != name:
            each.linkage = "internal"
    module.verify()
    passes = llvm.ModulePassManager()
    passes.add_global_dead_code_eliminate_pass()
    machine = llvm.Target.from_triple(module.triple).create_target_machine(opt=3)
    passes.run(module, llvm.PassBuilder(machine, llvm.create_pipeline_tuning_options(3)))
    baked = re.search(r"inttoptr \(i64 \d{5,}", str(module))
    if baked:
        raise RuntimeError(f"{name} holds an address of this process: {baked[0]}")
    return module


if __name__ == "__main__":
    emit(sys.argv[1], Path(sys.argv[2]))
