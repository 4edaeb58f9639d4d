"""Where the native library and its header lie, for programs that are not in Python."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path


def _native() -> Path:
    """The folder of the library, without an import of the backend."""
    spec = find_spec("adamas_core.cpu")
    places = spec.submodule_search_locations if spec else None
    found = [Path(place) / "native" for place in places or []]
    return next((place for place in found if place.is_dir()), Path("native"))


def get_include() -> str:
    """Return the folder that holds ``adamas.h``.

    Returns
    -------
    str
        A folder for the compiler's option ``-I``.

    Raises
    ------
    FileNotFoundError
        The package was installed without the header.
    """
    folder = _native() / "include"
    if not (folder / "adamas.h").is_file():
        raise FileNotFoundError(f"get_include: there is no adamas.h in {folder}")
    return str(folder)


def get_library() -> str:
    """Return the path of libadamas, which a C program links with.

    Its folder also holds ``cmake/adamas`` for CMake and ``pkgconfig`` for pkg-config.

    Returns
    -------
    str
        The path of ``libadamas.so``, on macOS of ``libadamas.dylib``.

    Raises
    ------
    FileNotFoundError
        The package was installed without the library.
    """
    for name in ("libadamas.so", "libadamas.dylib"):
        path = _native() / "lib" / name
        if path.is_file():
            return str(path)
    raise FileNotFoundError(
        f"get_library: there is no libadamas in {_native() / 'lib'}; expected an installation that "
        "built it: pip builds it unless ADAMAS_LEVELS=none"
    )
