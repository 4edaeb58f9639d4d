"""The disk cache of CPU kernels: damaged files, folders that cannot be written, other code."""

from __future__ import annotations

import compileall
import ctypes
import functools
import os
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from numba import prange
from processes import HOME, printed, run

from adamas_core import cpu
from adamas_core.cpu.kernels import _jit, _kernel_cache
from adamas_core.cpu.kernels._kernel_cache import _SealedFiles, fingerprint

STAMP, KEY = b"stamp", ("types", "processor")
NOWHERE = Path("/dev/null/adamas")  # not even root can make this folder


def stored(folder: Path, stamp: bytes = STAMP) -> _SealedFiles:
    return _SealedFiles(str(folder), "name", stamp)


def files(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if p.suffix in (".nbi", ".nbc"))


def test_what_is_saved_is_loaded(tmp_path):
    stored(tmp_path).save(KEY, "data")
    assert stored(tmp_path).load(KEY) == "data"
    assert [p.name for p in files(tmp_path)] == ["name.1.nbc", "name.nbi"]


def test_other_code_and_other_keys_find_nothing(tmp_path):
    stored(tmp_path).save(KEY, "data")
    assert stored(tmp_path, b"later").load(KEY) is None
    assert stored(tmp_path).load(("types", "another processor")) is None


@pytest.mark.parametrize("suffix", [".nbi", ".nbc"])
def test_no_damage_is_loaded(tmp_path, suffix):
    stored(tmp_path).save(KEY, "data")
    (path,) = tmp_path.glob(f"*{suffix}")
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        assert stored(tmp_path).load(KEY) is None
    for bit in range(8 * len(whole)):
        flipped = bytearray(whole)
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        assert stored(tmp_path).load(KEY) is None
    for other in bytes(len(whole)), whole + b"\0", os.urandom(300):
        path.write_bytes(other)
        assert stored(tmp_path).load(KEY) is None
    stored(tmp_path).save(KEY, "anew")
    assert stored(tmp_path).load(KEY) == "anew"


def test_a_new_index_never_leads_to_old_data(tmp_path):
    """As after a process that was killed between the two files."""
    stored(tmp_path).save(KEY, "old")
    new = stored(tmp_path, b"later")
    new._save_index({KEY: "name.1.nbc"})
    assert new.load(KEY) is None
    other = "types", "another processor"
    stored(tmp_path)._save_index({other: "name.1.nbc"})
    assert stored(tmp_path).load(other) is None


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda path: os.symlink(path, path)])
def test_what_is_no_file_is_not_opened(tmp_path, make):
    make(tmp_path / "name.nbi")
    assert stored(tmp_path).load(KEY) is None


def test_leftovers_of_killed_processes_are_removed(tmp_path):
    old, young = (tmp_path / f"name.nbi.tmp.{i}" for i in range(2))
    for path in (old, young):
        path.touch()
    hours = time.time() - 7200
    os.utime(old, (hours, hours))
    stored(tmp_path).save(KEY, "data")
    assert not old.exists()
    assert young.exists()


def test_writers_at_once_leave_files_that_are_whole(tmp_path):
    """Each reader finds what belongs to its stamp and key, or nothing."""

    def work(i):
        stamp, key = b"%d" % (i % 2), ("types", i % 3)
        for _ in range(30):
            stored(tmp_path, stamp).save(key, (stamp, key))
            assert stored(tmp_path, stamp).load(key) in (None, (stamp, key))

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(work, range(6)))
    assert {p.suffix for p in tmp_path.iterdir()} == {".nbi", ".nbc"}


def _twice(x):
    return x + x


def _fill(y):
    for i in prange(len(y)):
        y[i] = 5


@pytest.fixture
def folders(tmp_path, monkeypatch):
    """Two folders for kernels; no process has announced anything yet."""
    places = [tmp_path / "first", tmp_path / "second"]
    monkeypatch.setattr(_kernel_cache, "folders", lambda: places)
    for name in ("announce", "writable_folder"):
        function = getattr(_kernel_cache, name)
        monkeypatch.setattr(_kernel_cache, name, functools.cache(function.__wrapped__))
    return places


def called(function):
    """The result for 21, compiled or loaded as a process does at its first call."""
    address = _jit.opaque(function).address
    return ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_int64)(address)(21)


def test_the_second_process_compiles_nothing(folders, capfd):
    assert called(_twice) == 42
    assert capfd.readouterr().err.count("adamas-core: compiling CPU kernels, once") == 1
    saved = {path: path.stat().st_mtime_ns for path in files(folders[0])}
    assert len(saved) == 2
    _kernel_cache.announce.cache_clear()
    assert called(_twice) == 42
    assert capfd.readouterr().err == ""
    assert {path: path.stat().st_mtime_ns for path in files(folders[0])} == saved


@pytest.mark.parametrize("suffix", [".nbi", ".nbc"])
def test_a_damaged_file_is_compiled_anew(folders, capfd, suffix):
    called(_twice)
    (path,) = folders[0].glob(f"*{suffix}")
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    _kernel_cache.announce.cache_clear()
    assert called(_twice) == 42
    assert "compiling" in capfd.readouterr().err
    _kernel_cache.announce.cache_clear()
    assert called(_twice) == 42
    assert capfd.readouterr().err == ""


def test_a_parallel_kernel_is_cached(folders, capfd):
    for announced in (True, False):
        y = np.zeros(9, np.int64)
        _jit.kernel(_fill)(y)
        assert (y == 5).all()
        assert ("compiling" in capfd.readouterr().err) == announced
        _kernel_cache.announce.cache_clear()


def test_a_folder_that_cannot_be_written_is_passed_over(folders, capfd):
    folders[0] = NOWHERE
    called(_twice)
    assert f"cached in {folders[1]}" in capfd.readouterr().err
    assert len(files(folders[1])) == 2
    folders.reverse()  # and kernels in a folder are found, whether it can be written or not
    folders[1] = NOWHERE
    _kernel_cache.announce.cache_clear()
    assert called(_twice) == 42
    assert capfd.readouterr().err == ""


def test_without_a_folder_each_process_compiles(folders, capfd):
    folders[:] = [NOWHERE]
    for _ in range(2):
        assert called(_twice) == 42
    told = capfd.readouterr().err
    assert told.count("for this process alone") == 1
    assert f"(tried {NOWHERE}); set NUMBA_CACHE_DIR" in told


def test_a_full_disk_is_no_error(folders, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(_SealedFiles, "_write", full)
    assert called(_twice) == 42


def code_of(text: str, name: str = "a.py"):
    return compile(text, name, "exec")


def test_fingerprints_tell_code_apart_and_not_places():
    text = "def f(x):\n    return x + 1 if x in {'a', 'b'} else (2, 3.0)\n"
    same = fingerprint(code_of(text))
    assert fingerprint(code_of("# a comment\n\n" + text, "b.py")) == same
    for old, new in ("x + 1", "x - 1"), ("+ 1", "+ 2"), ("3.0", "3"), ("'b'", "'c'"), ("f(", "g("):
        assert fingerprint(code_of(text.replace(old, new))) != same


def test_the_stamp_covers_every_module():
    names = {name for name, _ in _kernel_cache._codes()}
    for package in ("cpu/kernels", "reference"):
        found = {p.stem for p in (Path(cpu.__file__).parents[1] / package).glob("*.py")}
        assert {
            f"adamas_core.{package.replace('/', '.')}.{name}" for name in found - {"__init__"}
        } <= names


SHOW = """
from adamas_core.cpu.kernels import _jit, _kernel_cache
_jit._parallel_for()
print(_kernel_cache.stamp().hex())"""


@pytest.fixture(scope="module")
def copies(tmp_path_factory):
    """The package as a folder of sources, as bytecode alone, and as a zip file."""
    home = tmp_path_factory.mktemp("copies")
    package = home / "sources" / "adamas_core"
    ignore = shutil.ignore_patterns("__pycache__", "*.pyc")
    shutil.copytree(HOME / "adamas_core", package, ignore=ignore)
    for part in ("cpu", "gpu", "reference"):
        if not (package / part).exists():
            shutil.copytree(HOME / part, package / part, ignore=ignore)
    archive = shutil.make_archive(str(home / "packed"), "zip", home / "sources")
    bytecode = home / "bytecode"
    shutil.copytree(home / "sources", bytecode)
    compileall.compile_dir(bytecode, quiet=2, legacy=True)
    for path in bytecode.rglob("*.py"):
        path.unlink()
    return {"sources": home / "sources", "bytecode": bytecode, "zip": Path(archive)}


def test_sources_bytecode_and_zip_files_are_the_same_code(copies, tmp_path):
    unset = {"NUMBA_CACHE_DIR": None, "XDG_CACHE_HOME": str(tmp_path)}
    stamps = {printed(SHOW, path, **unset) for path in copies.values()}
    assert stamps == {_kernel_cache.stamp().hex()}
    for name in ("sources", "bytecode"):
        assert files(copies[name] / "adamas_core" / "cpu" / "kernels" / "__pycache__")
    assert len(list(tmp_path.rglob("*.nbi"))) == 2  # those of the zip file, at home


def test_an_edit_counts_that_keeps_size_and_time(copies):
    path = copies["sources"] / "adamas_core" / "cpu" / "kernels" / "_threads.py"
    before, text = path.stat(), path.read_text()
    path.write_text(text.replace("GOMP_SPINCOUNT", "GOMP_SPINCOUNX"))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    try:
        assert path.stat().st_size == before.st_size
        assert printed(SHOW, copies["sources"]) != _kernel_cache.stamp().hex()
    finally:
        path.write_text(text)


@pytest.mark.parametrize("home", [None, "", "relative", "/dev/null"])
def test_folders_are_absolute_without_a_home(monkeypatch, home):
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    if home is None:
        monkeypatch.delenv("HOME", raising=False)
        monkeypatch.setattr(os, "getuid", lambda: 4_000_000_000)  # which no user has
    else:
        monkeypatch.setenv("HOME", home)
    found = _kernel_cache.folders.__wrapped__()
    assert all(folder.is_absolute() for folder in found)
    assert Path(_kernel_cache.__file__).parent / "__pycache__" in found


def test_folders_begin_with_that_of_numba(monkeypatch):
    monkeypatch.setattr(_kernel_cache.config, "CACHE_DIR", "/shared")
    monkeypatch.setenv("XDG_CACHE_HOME", "/home/cache")
    first, _, last = _kernel_cache.folders.__wrapped__()
    assert first.parent == Path("/shared")
    assert last.parent == Path("/home/cache/adamas-core")


def test_the_current_folder_may_be_gone(tmp_path):
    gone = str(tmp_path / "gone")
    code = f"import os; os.mkdir({gone!r}); os.chdir({gone!r}); os.rmdir({gone!r})\n" + SHOW
    found = printed(code, HOME=None, XDG_CACHE_HOME=None, NUMBA_CACHE_DIR="cache/of/numba")
    assert found == _kernel_cache.stamp().hex()


def test_a_generic_processor_has_no_float16():
    code = """
import numpy as np
from adamas_core import cpu, reference
from adamas_core.cpu.kernels._half import converts_halves
x = np.arange(65536, dtype=np.uint16).view(np.float16).reshape(1, 1, -1, 64)
with np.errstate(invalid="ignore"):
    same = np.array_equal(cpu.hadamard(x), reference.hadamard(x), equal_nan=True)
print(converts_halves(), same)"""
    assert printed(code, NUMBA_CPU_NAME="generic", NUMBA_CPU_FEATURES="") in (
        "False True",
        "True True",  # every processor of AArch64 converts
    )


def test_without_jit_the_reference_computes():
    code = """
import numpy as np
import adamas_core
print(adamas_core.hadamard(np.ones(4, np.float32)))"""
    done = run(code, NUMBA_DISABLE_JIT="1")
    assert done.returncode == 0
    assert done.stdout.strip() == "[2. 0. 0. 0.]"
    assert "NUMBA_DISABLE_JIT" in done.stderr
