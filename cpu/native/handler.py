"""The handler: a library over libadamas that JAX's compiled programs call, see jax.cc.

It needs headers of jaxlib. A wheel has a handler if JAX was there when the wheel was built. If none
fits, the C++ compiler makes one at the first use, in the user's cache.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from . import HERE, load, path, stamp

SOURCE = HERE / "jax.cc"
FLAGS = ("-O2", "-std=c++17", "-Wall", "-Wextra", "-fPIC", "-shared", "-s")
WHERE = "adamas_core.jax"
SUFFIX = ".dylib" if sys.platform == "darwin" else ".so"


@functools.cache
def loaded() -> ctypes.CDLL:
    """The handler. An ImportError says why there is none."""
    library = load()
    if isinstance(library, str):
        raise ImportError(
            f"{WHERE}: {library}; it needs the native library, which pip builds unless "
            "ADAMAS_LEVELS=none. In a source tree: python -m adamas_core.cpu.native.build "
            "cpu/native"
        )
    name = name_of(library.adamas_internal_stamp().decode())
    found = path().with_name(name)
    if not found.is_file():
        found = cache_folder() / name
        if not found.is_file():
            print(f"adamas-core: compiling {found}, for JAX, once", file=sys.stderr, flush=True)
            compile_to(found, path(), str(path().parent))
    try:
        return ctypes.CDLL(str(found))
    except OSError as error:
        raise ImportError(f"{WHERE}: {found} cannot be loaded: {error}") from error


def name_of(library_stamp: str) -> str:
    """The file's name: it says all that the handler is made from."""
    digest = hashlib.sha256(library_stamp.encode())
    for file in (SOURCE, *sorted(headers().rglob("*.h"))):
        digest.update(file.name.encode() + b"\0" + file.read_bytes())
    return f"libadamas_jax-{digest.hexdigest()[:16]}{SUFFIX}"


def headers() -> Path:
    """The folder of XLA's headers, which come with jaxlib."""
    from jax import ffi

    return Path(ffi.include_dir()) / "xla" / "ffi"


def cache_folder() -> Path:
    """Where a handler for this libadamas lies at home: one per place of libadamas."""
    home = os.environ.get("XDG_CACHE_HOME", "")
    if not os.path.isabs(home):
        home = os.path.expanduser("~/.cache")
    own = hashlib.sha256(str(path()).encode()).hexdigest()[:16]
    return Path(home) / "adamas-core" / f"jax_{own}"


def compile_to(target: Path, library: Path, at_run_time: str) -> None:
    """Compile the handler for a libadamas, which it finds in another folder at run time."""
    compiler = shlex.split(os.environ.get("CXX", "c++"))
    if shutil.which(compiler[0]) is None:
        raise ImportError(
            f"{WHERE}: there is no C++ compiler {compiler[0]!r}, which compiles {SOURCE.name} once "
            "for this jaxlib; install one, or name one in CXX"
        )
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as work:
            made = Path(work) / target.name
            includes = (f"-I{HERE / 'include'}", "-isystem", headers().parents[1])
            link = (f"-L{library.parent}", "-ladamas", f"-Wl,-rpath,{at_run_time}", "-o", made)
            command = [str(x) for x in (*compiler, *FLAGS, *includes, SOURCE, *link)]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                text = f"{shlex.join(command)} failed:\n{done.stderr[-4000:]}"
                raise ImportError(f"{WHERE}: {text}")
            os.replace(made, target)
    except OSError as error:
        raise ImportError(
            f"{WHERE}: {target.parent} cannot be written: {error}; expected a folder for a "
            "compiled file, see XDG_CACHE_HOME"
        ) from error


def build_beside(library: Path) -> Path:
    """Compile a handler into the folder of libadamas, for a wheel; older ones are removed."""
    for old in library.parent.glob("libadamas_jax-*"):
        old.unlink()
    target = library.with_name(name_of(stamp()))
    compile_to(target, library, "@loader_path" if sys.platform == "darwin" else "$ORIGIN")
    return target
