"""Programs in C over libadamas: under sanitizers, and over the file of a cache."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from adamas_core import KVCache, Selection, decode_attention
from adamas_core.cpu import native

PROGRAMS = Path(__file__).parent / "native"
SANITIZERS = {
    "none": [],
    "addresses and undefined behaviour": ["-fsanitize=address,undefined"],
    "threads": ["-fsanitize=thread"],
}
FLAGS = ["-std=c11", "-D_GNU_SOURCE", "-O1", "-g", "-Wall", "-Wextra", "-fno-omit-frame-pointer"]

pytestmark = [
    pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler, cc, is here"),
    pytest.mark.skipif(isinstance(native.load(), str), reason=f"no library: {native.load()}"),
]


def compiled(name: str, folder: Path, sanitizer: str = "none") -> Path:
    """A program linked with the library; its C files come along under a sanitizer, if they can."""
    target = folder / name
    flags = SANITIZERS[sanitizer]
    objects = native.HERE.parents[1] / "build" / "native" / native.stamp(objects_alone=True)[:16]
    command = ["cc", *FLAGS, *flags, f"-I{native.HERE / 'include'}", PROGRAMS / f"{name}.c"]
    if flags and (objects / "kernels.h").is_file():
        command += [f"-I{objects}", native.HERE / "adamas.c", native.HERE / "pool.c"]
        command += sorted(objects.glob("*.o"))
    else:
        library = native.path()
        command += [library, f"-Wl,-rpath,{library.parent}"]
    command += ["-lm", "-pthread", "-o", target]
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False)
    if done.returncode and "cannot find -l" in done.stderr + done.stdout and flags:
        pytest.skip(f"the compiler has no runtime for {flags[0]}")
    assert done.returncode == 0, done.stderr
    assert "warning" not in done.stderr, done.stderr
    return target


def run(*command: object, **environment: str) -> bytes:
    done = subprocess.run(
        [str(x) for x in command], capture_output=True, env=environment, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout


@pytest.mark.parametrize("sanitizer", SANITIZERS)
def test_encode_select_attend(tmp_path: Path, sanitizer: str) -> None:
    program = compiled("encode_select_attend", tmp_path, sanitizer)
    fork = ["no-fork"] if sanitizer == "threads" else []  # it cannot follow a fork with threads
    found = run(program, *fork, ADAMAS_NUM_THREADS="4", TSAN_OPTIONS="halt_on_error=1")
    assert found.decode().startswith(("x86-64", "aarch64"))


def test_under_valgrind(tmp_path: Path) -> None:
    """Which knows no AVX-512, so it runs a smaller level."""
    valgrind = shutil.which("valgrind")
    if valgrind is None:
        pytest.skip("valgrind is not here")
    program = compiled("encode_select_attend", tmp_path)
    plain = subprocess.run([program], capture_output=True, text=True, check=True)
    wanted = {"ADAMAS_ISA": "x86-64-v3"}
    level = subprocess.run([program], capture_output=True, text=True, check=True, env=wanted).stdout
    if level != "x86-64-v3\n":
        pytest.skip(f"the library has only {plain.stdout.strip()}, which valgrind does not know")
    options = ["--error-exitcode=3", "--quiet", "--fair-sched=yes"]
    run(valgrind, *options, program, "no-fork", ADAMAS_NUM_THREADS="2", **wanted)


def test_a_mapped_cache(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    k, v = rng.standard_normal((2, 2, 2, 900, 80), dtype=np.float32)
    q = rng.standard_normal((2, 6, 1, 80), dtype=np.float32)
    cache = KVCache(selection=Selection(tail=0))
    cache.append(k, v)
    cache.save(tmp_path / "cache")
    q.tofile(tmp_path / "q")
    program = compiled("mapped_cache", tmp_path, "addresses and undefined behaviour")
    found = run(program, tmp_path / "cache", tmp_path / "q", 6, 50)
    expected = decode_attention(q, cache, 50)
    np.testing.assert_allclose(np.frombuffer(found, np.float32).reshape(q.shape), expected,
                               atol=4e-6)  # fmt: skip


@pytest.mark.parametrize("fault", ["no file", "another file", "budget"])
def test_a_mapped_cache_that_is_wrong(tmp_path: Path, fault: str) -> None:
    program = compiled("mapped_cache", tmp_path)
    cache = KVCache(selection=Selection(tail=0))
    x = np.ones((1, 1, 70, 8), np.float32)
    cache.append(x, x)
    path = tmp_path / "cache"
    cache.save(path)
    if fault == "no file":
        path = tmp_path / "missing"
    elif fault == "another file":
        path.write_bytes(b"another file, of some length")
    np.ones((1, 1, 1, 8), np.float32).tofile(tmp_path / "q")
    budget = 71 if fault == "budget" else 5
    arguments = [program, path, tmp_path / "q", "1", budget]
    done = subprocess.run([*map(str, arguments)], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "mapped_cache: " in done.stderr


def test_cmake_and_pkg_config(tmp_path: Path) -> None:
    """The example of docs/native.md builds by either."""
    cmake, pkg_config = shutil.which("cmake"), shutil.which("pkg-config")
    home = native.path().parent
    if cmake is None and pkg_config is None:
        pytest.skip("neither cmake nor pkg-config is here")
    if pkg_config is not None:
        where = {"PKG_CONFIG_PATH": str(home / "pkgconfig")}
        found = run(pkg_config, "--cflags", "--libs", "adamas", **where).decode().split()
        source = PROGRAMS / "mapped_cache.c"
        subprocess.run(["cc", str(source), *found, "-o", str(tmp_path / "a")], check=True)
    if cmake is not None:
        (tmp_path / "CMakeLists.txt").write_text(
            "cmake_minimum_required(VERSION 3.16)\nproject(program C)\n"
            "find_package(adamas CONFIG REQUIRED)\n"
            f"add_executable(program {PROGRAMS / 'mapped_cache.c'})\n"
            "target_link_libraries(program adamas::adamas)\n"
        )
        build = tmp_path / "build"
        where = f"-Dadamas_DIR={home / 'cmake' / 'adamas'}"
        for command in ([cmake, "-S", tmp_path, "-B", build, where], [cmake, "--build", build]):
            done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stdout + done.stderr
