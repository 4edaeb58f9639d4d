"""Build the native library: objects of the kernels for each level, and the C files, as one file.

    python -m adamas_core.cpu.native.build FOLDER [LEVEL ...]

The folder gets lib/libadamas.so, the operator for ONNX Runtime, and what programs need to compile
and link with the library. Without levels it is the best one of this machine; "all" are those of its
kind of processor. Numba and a C compiler are needed here, and not where the library runs. Where JAX
is there, its handler is built too.
"""

from __future__ import annotations

import json
import os
import platform
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

from adamas_core.reference.center import CENTERED_THRESHOLDS

from .. import _records
from .._record import Record
from . import LIBRARY, OPERATOR, handler, in_a_source_tree, stamp
from .levels import LEVELS, environment, levels_here, levels_of, symbol

HERE = Path(__file__).parent
C_FILES = ("adamas.c", "pool.c")
OPERATOR_FILES = ("onnxruntime.c", "code_block.c", "rotary.c")
PARTS = (
    "include/adamas.h",
    "lib/cmake/adamas/adamasConfig.cmake.in",
    "lib/pkgconfig/adamas.pc.in",
)
FLAGS = ("-O2", "-std=c11", "-Wall", "-Wextra", "-fPIC", "-fvisibility=hidden", "-pthread")
MAC = sys.platform == "darwin"
# The operator finds the library beside it. Both stay in a process that no longer uses them, because
# the library has threads.
RUNPATH = ("-Wl,-rpath,@loader_path",) if MAC else ("-Wl,-rpath,$ORIGIN", "-Wl,-z,nodelete")
BESIDE = ("-ladamas", *RUNPATH)


def build(folder: Path, levels: list[str]) -> Path:
    """Build the library for these levels, least first, into a folder; returns its path."""
    library = folder / "lib" / LIBRARY
    library.parent.mkdir(parents=True, exist_ok=True)
    with work_folder() as work:
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            names = list(pool.map(lambda level: emitted(level, work), levels))
        (work / "kernels.h").write_text(header(levels, names[0]))
        objects = [work / f"{level}.o" for level in levels]
        compile_c(*FLAGS, f"-I{work}", *(HERE / x for x in C_FILES), *objects, *link(library))
    operator(library.parent)
    for part in PARTS:
        target = folder / part.removesuffix(".in")
        if part.endswith(".in") or folder.resolve() != HERE:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text((HERE / part).read_text().replace("@VERSION@", abi()))
    if find_spec("jax") is not None:
        try:
            handler.build_beside(library)
        except ImportError as error:  # it is compiled at its first use, or not at all
            print(f"libadamas: no handler for JAX: {error}", file=sys.stderr)
    return library


def operator(folder: Path) -> None:
    """Build the operator for ONNX Runtime, beside the library. It needs no header from outside."""
    files = [HERE / name for name in OPERATOR_FILES]
    compile_c(
        *FLAGS, f"-DCENTERED_THRESHOLDS={thresholds()}", *files, *link(folder / OPERATOR),
        f"-L{folder}", *BESIDE,
    )  # fmt: skip


def link(library: Path) -> tuple[object, ...]:
    """Arguments that make a shared library. On a Mac programs find it by the name in it."""
    own = f"-Wl,-install_name,@rpath/{library.name}" if MAC else "-s"
    return "-shared", own, "-lm", "-o", library


@contextmanager
def work_folder() -> Iterator[Path]:
    """A folder for objects. In a source tree it stays, and serves until the kernels change."""
    if in_a_source_tree():
        work = HERE.parents[1] / "build" / "native" / stamp(objects_alone=True)[:16]
        work.mkdir(parents=True, exist_ok=True)
        yield work
    else:
        with tempfile.TemporaryDirectory() as name:
            yield Path(name)


def compile_c(*arguments: object) -> None:
    """Run the C compiler, which is $CC or cc."""
    run(*shlex.split(os.environ.get("CC", "cc")), *arguments)


def abi() -> str:
    """The version of the interface, which is that of the installed library for other programs."""
    text = (HERE / "include" / "adamas.h").read_text()
    found = re.search(r"^#define ADAMAS_ABI (\d+)$", text, re.M)
    assert found is not None
    return found[1]


def emitted(level: str, work: Path) -> list[str]:
    """Emit the object of a level in a process of its own; returns the names of its functions."""
    if not (work / f"{level}.json").is_file():  # which is written last
        module = f"{__package__}.emit"
        run(sys.executable, "-m", module, level, work / f"{level}.o", env=environment(level))
    names: list[str] = json.loads((work / f"{level}.json").read_text())
    return names


def run(*command: object, env: dict[str, str] | None = None) -> None:
    done = subprocess.run([str(part) for part in command], env=env, check=False)
    if done.returncode:
        raise RuntimeError(f"libadamas: {command[0]} ended with {done.returncode}")


def header(levels: list[str], names: list[str]) -> str:
    """kernels.h: the layouts of records, and the tables of functions."""
    lines = ["/* Written by build.py. */", f'#define STAMP "{stamp()}"']
    lines += [f"enum {{ LEVELS = {len(levels)}, FUNCTIONS = {len(names)} }};"]
    lines += [f"#define CENTERED_THRESHOLDS {thresholds()}"]
    for kind, record in vars(_records).items():
        if isinstance(record, Record):
            lines += [struct(kind, record)]
    lines += ["enum {", *(f"  F_{name}," for name in names), "};"]
    lines += [quoted_table("function_names", names)]
    for level in levels:
        own = [symbol(level, name) for name in names]
        lines += [f"extern char {name}[];" for name in own]
        table = ", ".join(own)
        lines += [f"static const void *const {symbol(level, 'functions')}[] = {{{table}}};"]
        lines += [f"static int {symbol(level, 'here')}(void) {{ return {LEVELS[level].test}; }}"]
    lines += [
        "struct level { const char *name; const void *const *functions; int (*supported)(void); };"
    ]
    rows = [f'{{"{n}", {symbol(n, "functions")}, {symbol(n, "here")}}}' for n in levels]
    lines += [f"static const struct level levels[] = {{{', '.join(rows)}}};", ""]
    return "\n".join(lines)


def struct(kind: str, record: Record) -> str:
    """A record as a struct of C: Step as struct record_step."""
    name = re.sub("(?<!^)([A-Z])", r"_\1", kind).lower()
    fields = (
        f"  {'double' if record.dtype[field].kind == 'f' else 'int64_t'} {field};"
        for field in record.dtype.names or ()
    )
    return "\n".join([f"struct record_{name} {{", *fields, "};"])


def quoted_table(name: str, rows: list[str]) -> str:
    text = ", ".join(f'"{row}"' for row in rows)
    return f"static const char *const {name}[] = {{{text}}};"


def thresholds() -> str:
    """The thresholds of centered codes as C writes an array."""
    return f"{{{', '.join(map(float_of, CENTERED_THRESHOLDS))}}}"


def float_of(x: float) -> str:
    """A float32 as C writes it, with all its bits."""
    return f"{float(x).hex()}f"


if __name__ == "__main__":
    wanted = sys.argv[2:] or levels_here()[-1:]
    build(Path(sys.argv[1]), levels_of(platform.machine()) if wanted == ["all"] else wanted)
