"""Compile one variant of a kernel with NVRTC. This needs no GPU.

CuPy's RawModule could compile too, but it adds -ftz=true after the caller's options. That option
sets subnormal numbers to zero, which changes specified bits. So this module calls NVRTC, and CuPy
only loads the result.
"""

from __future__ import annotations

import re
import struct
from typing import NamedTuple

from ._kernels import FOLDER, Kernel, Variant

OPTIONS = ("-std=c++17", "--ftz=false", "--prec-div=true", "--prec-sqrt=true")


class Binary(NamedTuple):
    """A compiled variant.

    The code, the name of the kernel in it, the messages of ptxas, and the PTX before ptxas.
    """

    code: bytes
    symbol: str
    log: str
    ptx: str


class Resources(NamedTuple):
    """Registers and memory of one thread of a compiled variant, and shared memory of one block."""

    registers: int
    stack: int  # bytes of local memory, spills included
    spills: int  # bytes stored and loaded
    shared: int  # bytes of static shared memory


def resources(binary: Binary) -> Resources:
    """Read from the messages of ptxas, which exist for machine code but not for PTX."""
    for part in binary.log.split("Compiling entry function")[1:]:
        if f"'{binary.symbol}'" in part.partition("\n")[0]:
            return Resources(
                registers=_number(r"Used (\d+) registers", part),
                stack=_number(r"(\d+) bytes stack frame", part),
                spills=sum(_number(rf"(\d+) bytes spill {what}", part) for what in _SPILLS),
                shared=_number(r"(\d+) bytes smem", part, otherwise=0),
            )
    raise ValueError(f"no message of ptxas about {binary.symbol}:\n{binary.log}")


_SPILLS = ("stores", "loads")


def _number(pattern: str, text: str, otherwise: int | None = None) -> int:
    found = re.search(pattern, text)
    if found:
        return int(found[1])
    if otherwise is None:
        raise ValueError(f"no {pattern!r} in the messages of ptxas:\n{text}")
    return otherwise


def options(kernel: Kernel, architecture: str) -> tuple[str, ...]:
    """Options of NVRTC for an architecture such as sm_90 (machine code) or compute_90 (PTX)."""
    fused = "--fmad=false" if kernel.exact else "--fmad=true"
    return (*OPTIONS, fused, f"--gpu-architecture={architecture}", "--ptxas-options=-v")


def compile_variant(kernel: Kernel, variant: Variant, architecture: str) -> Binary:
    """Compile a variant; RuntimeError with the messages of the compiler if that fails."""
    from cupy.cuda import nvrtc

    program = nvrtc.createProgram(kernel.source, kernel.file, (), ())
    try:
        expression = kernel.expression(variant)
        nvrtc.addNameExpression(program, expression)
        try:
            nvrtc.compileProgram(program, (*options(kernel, architecture), f"-I{FOLDER}"))
        except nvrtc.NVRTCError as error:
            log = nvrtc.getProgramLog(program)
            raise RuntimeError(f"{kernel.file}: {expression} for {architecture}:\n{log}") from error
        text = nvrtc.getPTX(program)
        ptx = text.decode() if isinstance(text, bytes) else text
        code = whole(nvrtc.getCUBIN(program)) if architecture.startswith("sm_") else ptx.encode()
        symbol = nvrtc.getLoweredName(program, expression)
        return Binary(code, symbol, nvrtc.getProgramLog(program), ptx)
    finally:
        nvrtc.destroyProgram(program)


def whole(cubin: bytes) -> bytes:
    """The machine code with the last byte that CuPy takes for the end of a string, and drops.

    That byte is always 0: the file ends with the program headers, and each of them with the high
    byte of a small number.
    """
    missing = elf_size(cubin) - len(cubin)
    if missing not in (0, 1):
        raise RuntimeError(f"NVRTC gave {len(cubin)} bytes; their ELF header says {missing} more")
    return cubin + bytes(missing)


def elf_size(file: bytes) -> int:
    """Bytes of a 64-bit ELF file, up to the end of its section and program headers."""
    tables = struct.unpack_from("<QQ", file, 32)  # program headers, section headers
    sizes = struct.unpack_from("<HHHH", file, 54)  # bytes and number of the ones, then the others
    ends = tables[0] + sizes[0] * sizes[1], tables[1] + sizes[2] * sizes[3]
    return int(max(ends))


def architecture_for(capability: str) -> str:
    """The architecture to compile for, on a device of a compute capability such as "90".

    A device that is newer than NVRTC gets PTX of the newest architecture that NVRTC knows. The
    driver translates it.
    """
    from cupy.cuda import nvrtc

    known = sorted(int(number) for number in nvrtc.getSupportedArchs())
    if int(capability) in known:
        return f"sm_{capability}"
    return f"compute_{max(n for n in known if n < int(capability))}"
