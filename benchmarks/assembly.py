"""What the vector code of the scores becomes on other processors: inspected, not run.

    NUMBA_CPU_NAME=x86-64-v3 NUMBA_CPU_FEATURES= python benchmarks/assembly.py

Numba's LLVM IR of `score_tile` is compiled for each target, and the instructions that do the work
are counted over the whole function. A call or a division there would be a path that is not vector
code. The variables keep Numba from using instructions that only this machine has.
"""

from __future__ import annotations

import re
from collections import Counter

import llvmlite.binding as llvm
from numba.core.registry import cpu_target

from adamas_core.cpu.kernels._lookup import AVAILABLE
from adamas_core.cpu.kernels.score import score_tile

# Triple, processor, features, and the instructions that count bits and look up nibbles.
TARGETS = {
    "x86-64-v3 (AVX2)": ("x86_64-unknown-linux-gnu", "x86-64-v3", ""),
    "x86-64-v4 (AVX-512)": ("x86_64-unknown-linux-gnu", "x86-64-v4", ""),
    "Zen 4, Ice Lake (AVX-512 VPOPCNTDQ)": ("x86_64-unknown-linux-gnu", "icelake-server", ""),
    "AArch64 (NEON)": ("aarch64-unknown-linux-gnu", "generic", "+neon"),
    "Apple M1 (NEON)": ("aarch64-unknown-linux-gnu", "apple-m1", ""),
}
WORK = re.compile(
    r"^\t(v?pshufb|popcnt[a-z]*|vpopcntq|vpsadbw|cnt|uadalp|uaddlp|addv|udot|call|bl|div)\b"
)


def ir() -> str:
    """As Numba hands it to LLVM's code generator, optimised."""
    assert score_tile.address  # which compiles it
    return score_tile._compiled.inspect_llvm()


def assembly(text: str, triple: str, processor: str, features: str) -> str:
    target = llvm.Target.from_triple(triple)
    machine = target.create_target_machine(processor, features, opt=3, reloc="pic")
    text = re.sub(r"^target (triple|datalayout) = .*$", "", text, flags=re.M)
    text = re.sub(r'"target-(cpu|features)"="[^"]*"', "", text)
    module = llvm.parse_assembly(text)
    module.triple, module.data_layout = triple, str(machine.target_data)
    return machine.emit_assembly(module)


def main() -> None:
    if AVAILABLE:
        raise SystemExit("set NUMBA_CPU_NAME and NUMBA_CPU_FEATURES as above")
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    features = cpu_target.target_context.codegen().magic_tuple()
    print(f"IR made for {features[1]}")
    text = ir()
    for name, target in TARGETS.items():
        code = assembly(text, *target)
        found = Counter(m[1] for line in code.splitlines() if (m := WORK.match(line)))
        lines = sum(bool(re.match(r"\t[^.]", line)) for line in code.splitlines())
        told = ", ".join(f"{count} {what}" for what, count in sorted(found.items()))
        print(f"{name}: {lines} instructions; {told}")


if __name__ == "__main__":
    main()
