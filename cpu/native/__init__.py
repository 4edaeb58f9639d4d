"""The native library: the kernels, compiled when the package is built.

levels.py says for which processors, emit.py compiles for one of them, and build.py makes the
library. Here is how Python finds it. Nothing in this file needs Numba.
"""

from __future__ import annotations

import ctypes
import hashlib
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
LIBRARY = "libadamas.dylib" if sys.platform == "darwin" else "libadamas.so"
OPERATOR = LIBRARY.replace("libadamas", "libadamas_onnxruntime")


def path() -> Path:
    """Where the library lies, if it has been built."""
    return HERE / "lib" / LIBRARY


def load() -> ctypes.CDLL | str:
    """The library, or why it cannot be used."""
    if not path().is_file():
        return "the library was not built"
    try:
        library = ctypes.CDLL(str(path()))
    except OSError as error:
        return f"the library cannot be loaded: {error}"
    library.adamas_internal_stamp.restype = ctypes.c_char_p
    if in_a_source_tree() and library.adamas_internal_stamp() != stamp().encode():
        return "the library was built from other sources; install again to build it anew"
    library.adamas_level.restype = ctypes.c_char_p
    library.adamas_internal_function.argtypes = [ctypes.c_char_p]
    library.adamas_internal_function.restype = ctypes.c_int64
    library.adamas_internal_run.argtypes = [ctypes.c_int64] * 5
    return library


def in_a_source_tree() -> bool:
    """Whether the files of the package can be edited under a library that was built before."""
    return (HERE.parents[1] / "pyproject.toml").is_file()


def stamp(objects_alone: bool = False) -> str:
    """A digest of all sources that the library, or the objects in it, are made from."""
    cpu = HERE.parent
    names = ("_array", "_record", "_records", "native/emit", "native/levels")
    files = [cpu / f"{name}.py" for name in names]
    for folder in (cpu / "kernels", HERE.parents[1] / "reference"):
        files += sorted(folder.glob("*.py"))
    if not objects_alone:
        files += [*sorted(HERE.glob("*.[ch]")), HERE / "include" / "adamas.h", HERE / "build.py"]
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.name.encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()
