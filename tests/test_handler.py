"""The handler of JAX's programs: where it is found, when it is compiled, and its errors."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import with_jax

with_jax.skip_if_missing()

from processes import printed, run  # noqa: E402

from adamas_core.cpu import native  # noqa: E402
from adamas_core.cpu.native import handler  # noqa: E402

pytestmark = pytest.mark.peers
CALLS = ("append", "step", "select", "dense", "attend")


@pytest.fixture
def away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of its own, for a library beside which there is no handler."""
    lib = tmp_path / "lib"
    lib.mkdir()
    (lib / native.LIBRARY).symlink_to(native.path())
    monkeypatch.setattr(handler, "path", lambda: lib / native.LIBRARY)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    handler.loaded.cache_clear()
    return tmp_path


def test_it_is_compiled_once_and_found_again(
    away: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made = handler.loaded()
    assert all(hasattr(made, f"adamas_jax_{name}") for name in CALLS)
    (file,) = away.rglob("libadamas_jax-*")
    assert file == handler.cache_folder() / handler.name_of(native.stamp())
    assert list(file.parent.iterdir()) == [file]  # nothing is left of the work
    assert capsys.readouterr().err == f"adamas-core: compiling {file}, for JAX, once\n"
    handler.loaded.cache_clear()
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert handler.loaded()._name == str(file)
    assert capsys.readouterr().err == ""


def test_one_beside_the_library_comes_first(away: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library = away / "lib" / native.LIBRARY
    old = library.with_name("libadamas_jax-old.so")
    old.touch()
    beside = handler.build_beside(library)
    assert not old.exists()
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert handler.loaded()._name == str(beside)


def test_the_name_says_what_it_is_made_from(monkeypatch: pytest.MonkeyPatch) -> None:
    stamp = native.stamp()
    name = handler.name_of(stamp)
    assert name == handler.name_of(stamp)
    assert name != handler.name_of(stamp[::-1])
    monkeypatch.setattr(handler, "SOURCE", handler.HERE / "adamas.c")
    assert name != handler.name_of(stamp)
    monkeypatch.undo()
    monkeypatch.setattr(handler, "headers", lambda: handler.HERE / "include")
    assert name != handler.name_of(stamp)


def test_no_compiler(away: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler -O3")
    with pytest.raises(ImportError, match="there is no C\\+\\+ compiler 'no-such-compiler'"):
        handler.loaded()


def test_a_compiler_that_fails(away: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "c++ -no-such-option")
    with pytest.raises(ImportError, match=r"(?s)failed:.*no-such-option"):
        handler.loaded()
    assert list(handler.cache_folder().iterdir()) == []


def test_a_folder_that_cannot_be_written(away: Path) -> None:
    (away / "cache").touch()
    with pytest.raises(ImportError, match=r"cannot be written.*XDG_CACHE_HOME"):
        handler.loaded()


def test_a_damaged_file(away: Path) -> None:
    (away / "lib" / handler.name_of(native.stamp())).write_text("nonsense")
    with pytest.raises(ImportError, match="cannot be loaded"):
        handler.loaded()


def test_no_native_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handler, "load", lambda: "the library was not built")
    handler.loaded.cache_clear()
    with pytest.raises(ImportError, match=r"the library was not built.*python -m adamas_core"):
        handler.loaded()


def test_no_jax() -> None:
    done = run("import sys; sys.modules['jax'] = None; import adamas_core.jax")
    assert 'ImportError: adamas_core.jax needs JAX: pip install "adamas-core[jax]"' in done.stderr


def test_jax_is_imported_for_adamas_core_jax_alone() -> None:
    code = "import sys, adamas_core, adamas_core.cpu.native.handler; print('jax' in sys.modules)"
    assert printed(code) == "False"


def test_python_is_not_part_of_it(away: Path) -> None:
    """It needs libadamas and the C++ library, and has no address of a process in a program."""
    handler.loaded()
    (file,) = away.rglob("libadamas_jax-*")
    code = f"import ctypes; ctypes.CDLL({str(file)!r}); print('loaded')"
    assert printed(code) == "loaded"
    assert b"Py_Initialize" not in file.read_bytes()
    assert b"PyObject" not in file.read_bytes()


@pytest.fixture(autouse=True)
def forget() -> object:
    yield
    handler.loaded.cache_clear()


def test_the_suffix_is_that_of_the_platform() -> None:
    assert (handler.SUFFIX == ".dylib") == (sys.platform == "darwin")
