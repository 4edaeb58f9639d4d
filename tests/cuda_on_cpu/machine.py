"""Launches kernels on this CPU: a device for adamas_core.gpu, with a stand-in for CuPy.

Each .cu file becomes one program with all its variants. It is built once and kept in BUILD, under a
hash of the sources, the options and the version of the compiler. A launch is sent to the process of
that program. So a deadlock, a crash or a report of AddressSanitizer becomes a KernelFault, and the
next launch starts another process.

The process holds each argument in memory of exactly its extent, with AddressSanitizer's red zones
around it. Every launch runs once for each order of `orders`, and must give the same bytes each
time.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import shutil
import struct
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from hashlib import sha256
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import numpy as np

from adamas_core.gpu._kernels import KERNELS, Kernel, Variant, headers
from adamas_core.gpu._launch import SHARED_MOST, Argument
from cuda_on_cpu.arrays import XP, DeviceArray

HERE = Path(__file__).parent
BUILD = HERE.parent.parent / "build" / "cuda_on_cpu"
OPTIONS = (
    "-std=c++20",
    "-g1",
    "-w",
    "-fno-strict-aliasing",
    "-ffp-contract=off",
    "-fcf-protection=none",
    # In addition to memory: operations whose results differ between x86-64 and a GPU.
    "-fsanitize=address,alignment,bounds,shift,float-cast-overflow",
    "-fno-sanitize-recover=all",
    "-fno-pie",
    "-no-pie",
)
# Orders in which threads and blocks are resumed: ascending (0, 0), descending (1, 0), and random
# (2, seed). A missing barrier shows in the ascending or in a random order; see ALL_ORDERS.
ORDERS = ((0, 0), (2, 1))
ALL_ORDERS = ((0, 0), (1, 0), (2, 1), (2, 2))
PATIENCE = 60.0  # seconds for one launch


class KernelFault(Exception):
    """A kernel broke a rule; the text is the report."""


class Program:
    """One .cu file, built for the CPU, and the process that runs it."""

    def __init__(
        self,
        name: str,
        source: str,
        included: dict[str, str],
        kernels: Sequence[str],
        level: str = "-O1",
    ) -> None:
        """`source` includes only the files `included`; `kernels` are expressions like f<int, 3>.

        -O1 compiles faster, and -O2 runs faster.
        """
        self.kernels = list(kernels)
        path = _built(name, source, included, self.kernels, (*OPTIONS, level))
        self._command = [str(path), *_shared_variables(path)]
        self._process: subprocess.Popen[bytes] | None = None
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115  closed with the process

    def run(self, request: bytes, answer: int) -> bytes:
        """Send a request and return the answer's bytes."""
        if self._process is None:
            self._errors = tempfile.TemporaryFile()  # noqa: SIM115
            self._process = subprocess.Popen(
                self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors
            )
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(request)
            process.stdin.flush()
            got = bytearray()
            while len(got) < answer + 1:
                ready, _, _ = select.select([process.stdout], [], [], PATIENCE)
                if not ready:
                    process.kill()
                    raise KernelFault(f"no answer within {PATIENCE:.0f} s")
                part = os.read(process.stdout.fileno(), 1 << 20)
                if not part:
                    raise KernelFault(self._report())
                got += part
        except BrokenPipeError:
            raise KernelFault(self._report()) from None
        except KernelFault:
            self.close()
            raise
        return bytes(got[:answer])

    def _report(self) -> str:
        assert self._process is not None
        code = self._process.wait()
        self._errors.seek(0)
        text = self._errors.read().decode(errors="replace")
        return text[:4000] or f"the process ended with {code}"

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.kill()
            with contextlib.suppress(BrokenPipeError):
                self._process.communicate()
            self._errors.close()
            self._process = None


def _built(
    name: str,
    source: str,
    included: dict[str, str],
    kernels: list[str],
    options: Sequence[str],
) -> Path:
    """The path of the program. It is compiled if it does not exist."""
    cases = "\n".join(
        f"    case {i}: return worker::bound({kernel}, values);" for i, kernel in enumerate(kernels)
    )
    # AddressSanitizer pads static variables of templates only in an unnamed namespace.
    main = f"""
#include "worker.hpp"
namespace {{
#include "{name}"
}}
static worker::Runner bind_kernel(uint32_t kernel, const worker::Values& values) {{
  switch (kernel) {{
{cases}
  }}
  shim::fail("no such kernel");
}}
int main(int count, char** words) {{ return worker::serve(count, words, bind_kernel); }}
"""
    own = {path.name: path.read_text() for path in sorted(HERE.glob("*.hpp"))}
    files = {name: source, **included, **own, "main.cpp": main}
    key = sha256(repr((_compiler(), options, sorted(files.items()))).encode()).hexdigest()[:24]
    program = BUILD / f"{Path(name).stem}-{key}"
    if not program.is_file():
        BUILD.mkdir(parents=True, exist_ok=True)
        with _only_one(program.with_suffix(".lock")):
            if not program.is_file():
                _compile(name, files, options, program)
    return program


@cache
def _compiler() -> str:
    """The version of the compiler."""
    return subprocess.run(["g++", "--version"], capture_output=True, text=True, check=True).stdout


@contextlib.contextmanager
def _only_one(lock: Path) -> Iterator[None]:
    """Inside the block no other process is in a block with the same lock."""
    with open(lock, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # released when the file is closed
        yield


def _compile(name: str, files: dict[str, str], options: Sequence[str], program: Path) -> None:
    """Compile main.cpp of `files`. The program appears under its name only when it is complete."""
    with tempfile.TemporaryDirectory(dir=BUILD) as folder:
        for file, text in files.items():
            (Path(folder) / file).write_text(text)
        built = Path(folder) / "program"
        command = ["g++", *options, "main.cpp", "-o", built.name]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"g++ on {name}:\n{done.stderr[:6000]}")
        os.replace(built, program)


def _shared_variables(program: Path) -> list[str]:
    """Address and size, in hexadecimal, of each static variable of the kernels' functions."""
    listed = subprocess.run(
        ["nm", "--print-size", program], capture_output=True, text=True, check=True
    ).stdout
    found = [line.split() for line in listed.splitlines() if " _ZZN12_GLOBAL__N_1" in line]
    return [word for address, size, kind, _ in found if kind in "bd" for word in (address, size)]


class Extent(NamedTuple):
    """The bytes that an array spans in memory: the lowest address, and the highest plus 1."""

    first: int
    end: int


def extent(x: np.ndarray[Any, Any]) -> Extent:
    """The extent of an array with any strides."""
    address = x.__array_interface__["data"][0]
    if x.size == 0:
        return Extent(address, address)
    reach = [(n - 1) * step for n, step in zip(x.shape, x.strides, strict=True)]
    first = address + sum(r for r in reach if r < 0)
    return Extent(first, address + sum(r for r in reach if r > 0) + x.itemsize)


def _memory(at: Extent) -> memoryview:
    import ctypes

    return memoryview((ctypes.c_char * (at.end - at.first)).from_address(at.first)).cast("B")


class Cpu:
    """A device for adamas_core.gpu._launch. Each launch runs in all `orders` of threads."""

    def __init__(self, orders: Sequence[tuple[int, int]] = ORDERS) -> None:
        self.xp = XP
        self._orders = orders
        self._programs: dict[str, Program] = {}

    def launch(
        self,
        kernel: Kernel,
        variant: Variant,
        grid: tuple[int, ...],
        threads: int,
        arguments: Mapping[str, Argument],
        shared: int = 0,
    ) -> None:
        """Run a kernel of the registry in all orders."""
        expression = kernel.expression(variant)
        key = expression if variant in kernel.rare else kernel.file
        program = self._programs.get(key)
        if program is None or expression not in program.kernels:
            program = self._programs[key] = self.program(kernel, expression)
        given = kernel.ordered(arguments)
        assert not any(isinstance(x, np.ndarray) for x in given), "an array of the host"
        there = [x.host if isinstance(x, DeviceArray) else x for x in given]
        launch(program, expression, grid, threads, there, shared, self._orders)

    def program(self, kernel: Kernel, expression: str) -> Program:
        """The program with a kernel's variant: all of the kernel's file, or a rare one alone."""
        expressions = [
            k.expression(v) for k in KERNELS if k.file == kernel.file for v in k.variants
        ]
        if expression not in expressions:
            expressions = [expression]
        return Program(kernel.file, kernel.source, headers(), expressions, "-O2")

    def multiprocessors(self) -> int:
        """A small number, so that small inputs are split too, and into parts of different sizes."""
        return 3

    def capturing(self) -> bool:
        """False: there are no CUDA graphs."""
        return False

    def number(self) -> int:
        """The number of the only device."""
        return 0

    def close(self) -> None:
        """End the processes."""
        for program in self._programs.values():
            program.close()


def launch(
    program: Program,
    expression: str,
    grid: tuple[int, ...],
    threads: int,
    arguments: Sequence[Argument],
    shared: int = 0,
    orders: Sequence[tuple[int, int]] = ALL_ORDERS,
) -> None:
    """Run a kernel on NumPy arrays, in place; KernelFault with the report of the shim."""
    grid = (*grid, 1, 1)[:3]
    if not (1 <= grid[0] < 2**31 and all(1 <= n < 2**16 for n in grid[1:])):
        raise KernelFault(f"{expression}: a grid of {grid}")
    if not 1 <= threads <= 1024 or not 0 <= shared <= SHARED_MOST:
        raise KernelFault(f"{expression}: {threads} threads, {shared} bytes of shared memory")
    arrays = [x for x in arguments if isinstance(x, np.ndarray)]
    buffers = _merged([extent(x) for x in arrays])
    packed = [_packed(x, buffers) for x in arguments]
    before = [bytes(_memory(at)) for at in buffers]
    body = b"".join(
        [
            *(struct.pack("<QQ", at.end - at.first, at.first % 16) for at in buffers),
            *packed,
            *before,
        ]
    )
    counts = (len(buffers), len(packed))
    size = sum(map(len, before))
    answers = []
    for order, seed in orders:
        header = struct.pack(
            "<12I",
            program.kernels.index(expression),
            *grid,
            threads,
            1,
            1,
            shared,
            *counts,
            order,
            seed,
        )
        try:
            answers.append(program.run(header + body, size))
        except KernelFault as fault:
            raise KernelFault(f"{expression}, order {order}, seed {seed}: {fault}") from None
    if any(answer != answers[0] for answer in answers):
        raise KernelFault(f"{expression}: the result depends on the order of the threads")
    _put_back(expression, arrays, buffers, before, answers[0])


def _merged(extents: list[Extent]) -> list[Extent]:
    """Join extents that overlap into one buffer. Neighbours stay apart, each with its red zones."""
    merged: list[Extent] = []
    for at in sorted(set(extents)):
        if merged and at.first < merged[-1].end:
            merged[-1] = Extent(merged[-1].first, max(merged[-1].end, at.end))
        else:
            merged.append(at)
    return merged


def _packed(x: Argument, buffers: list[Extent]) -> bytes:
    """One argument as worker.hpp's Argument."""
    if x is None:
        return struct.pack("<QQQ", ord("0"), 0, 0)
    if isinstance(x, np.ndarray) and x.size == 0:
        return struct.pack("<QQQ", ord("0"), 0, 0)  # CuPy gives an empty array no address
    if isinstance(x, np.ndarray):
        at = extent(x)
        number = next(
            i
            for i, b in enumerate(buffers)
            if (b.first <= at.first and at.end <= b.end and (at.first < b.end or b == at))
        )
        address = x.__array_interface__["data"][0]
        return struct.pack("<QQQ", ord("p"), number, address - buffers[number].first)
    if isinstance(x, int):
        return struct.pack("<QqQ", ord("i"), x, 0)
    if isinstance(x, float):
        return struct.pack("<QfxxxxQ", ord("f"), x, 0)
    raise TypeError(f"a {type(x)} is no argument of a kernel")


def _put_back(
    expression: str,
    arrays: list[np.ndarray[Any, Any]],
    buffers: list[Extent],
    before: list[bytes],
    answer: bytes,
) -> None:
    """Write the changed buffers of the answer into memory."""
    offset = 0
    for at, old in zip(buffers, before, strict=True):
        new = answer[offset : offset + len(old)]
        offset += len(old)
        if new == old:
            continue
        for x in arrays:
            if not x.flags.writeable and at.first <= extent(x).first < at.end:
                raise KernelFault(f"{expression}: writes into a read-only array")
        _memory(at)[:] = new


def missing() -> str | None:
    """Why this machine cannot build the programs, or None."""
    return None if shutil.which("g++") else "g++ is not installed"


# Sizes at which the launchers split long inputs, so small that they split the inputs of the tests:
# module, name and value.
SMALL = (
    ("topk", "CHUNK", 128),
    ("topk", "MERGE_SHARED", 400),
    ("select", "MAX_CHUNK", 128),
    ("select", "MIN_CHUNK", 64),
    ("estimate", "BLOCK_TOKENS", 128),
    ("group", "BLOCK_TOKENS", 100),
    ("group", "THREADS", 64),
    ("attend", "MIN_SPLIT", 5),
    ("tail", "MIN_CODED", 5),
    ("tail", "MERGE_SHARED", 400),
    ("tail", "MERGE_THREADS", 64),
    ("rerank", "SHARED_PRODUCTS", 100),
    ("rerank", "THREADS", 64),
)


@contextlib.contextmanager
def small() -> Iterator[None]:
    """Inside the block the launchers split long inputs at the sizes of `SMALL`."""
    with contextlib.ExitStack() as stack:
        for module, name, value in SMALL:
            stack.enter_context(patch.object(_of_gpu(module), name, value))
        yield


@contextlib.contextmanager
def installed(cpu: Cpu | None = None) -> Iterator[Cpu]:
    """Inside the block adamas_core.gpu runs on this CPU, and splits at small sizes."""
    cpu = cpu or Cpu()
    with contextlib.closing(cpu), small(), patch.object(_of_gpu("_launch"), "device", lambda: cpu):
        yield cpu


def _of_gpu(module: str) -> Any:
    """A module of adamas_core.gpu."""
    return import_module(f"adamas_core.gpu.{module}")
