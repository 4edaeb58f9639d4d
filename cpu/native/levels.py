"""The sets of instructions that the library is built for, least first."""

from __future__ import annotations

import os
import platform
import re
from typing import NamedTuple


class Level(NamedTuple):
    """A set of instructions."""

    cpu: str  # LLVM's name of a processor that has them
    features: str  # those that kernels ask for by name, each followed by a comma
    test: str  # an expression of C: whether this processor has them


_AVX512 = "+avx512f,+avx512cd,+avx512bw,+avx512dq,+avx512vl,"


def _has(*features: str) -> str:
    return " && ".join(f'__builtin_cpu_supports("{name}")' for name in features)


_V3 = _has("avx2", "fma", "f16c", "bmi", "bmi2")
_V4 = f"{_V3} && {_has('avx512f', 'avx512bw', 'avx512cd', 'avx512dq', 'avx512vl')}"

LEVELS = {
    "x86-64-v2": Level("x86-64-v2", "", "1"),
    "x86-64-v3": Level("x86-64-v3", "", _V3),
    "x86-64-v4": Level("x86-64-v4", _AVX512, _V4),
    "x86-64-v4-vbmi": Level(
        "x86-64-v4",
        _AVX512 + "+avx512vbmi,+avx512vpopcntdq,",
        f"{_V4} && {_has('avx512vbmi', 'avx512vpopcntdq')}",
    ),
    "aarch64": Level("generic", "+neon,", "1"),
}


def levels_of(machine: str) -> list[str]:
    """The levels of a machine's kind of processor, as platform.machine() has it."""
    if machine.lower() in ("x86_64", "amd64"):
        return [name for name in LEVELS if name.startswith("x86-64")]
    if machine.lower() in ("aarch64", "arm64"):
        return ["aarch64"]
    return []


def levels_here() -> list[str]:
    """The levels that this machine can run, least first."""
    return [name for name in levels_of(platform.machine()) if _runs_here(name)]


def _runs_here(name: str) -> bool:
    import llvmlite.binding as llvm

    features = llvm.get_host_cpu_features()
    wanted = re.findall(r'supports\("(\w+)"\)', LEVELS[name].test)
    return all(features.get(feature, False) for feature in wanted)


def environment(level: str) -> dict[str, str]:
    """The variables of the process that emits a level."""
    own = {
        "NUMBA_CPU_NAME": LEVELS[level].cpu,
        "NUMBA_CPU_FEATURES": LEVELS[level].features,
        "NUMBA_DISABLE_JIT": "0",
        "ADAMAS_CPU": "numba",
    }
    return {**os.environ, **own}


def symbol(level: str, name: str) -> str:
    """The symbol of a function of a level."""
    return f"adamas_{re.sub('[^a-z0-9]', '_', level)}_{name}"
