"""The wheel holds the whole tree, and every way to install works, at its root and elsewhere."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest
import with_jax

from adamas_core.cpu import native
from adamas_core.cpu.native import handler

pytestmark = pytest.mark.packaging

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = {
    "adamas_core": "adamas_core",
    "cpu": "adamas_core/cpu",
    "gpu": "adamas_core/gpu",
    "reference": "adamas_core/reference",
}
SHIPPED = {".py", ".pyi", ".pyx", ".pxd", ".cu", ".cuh", ".typed", ".c", ".cc", ".h", ".in"}
# Made by a build, with the library.
NATIVE = (
    "libadamas.so",
    "libadamas_onnxruntime.so",
    "cmake/adamas/adamasConfig.cmake",
    "pkgconfig/adamas.pc",
)

# An installation must run this wherever Python starts. Only append needs the compiled module.
USE = """
from importlib.metadata import version

import numpy as np
import adamas_core.cpu, adamas_core.gpu, adamas_core.reference
from adamas_core.cpu import _pack

k = np.random.default_rng(0).standard_normal((1, 2, 1, 80)).astype(np.float16)
t = np.array([-1, 0, 1], np.float32)
planes = np.zeros((2, 1, 2, 1, 8, 2, 8), np.uint64)
_pack.append(k, t, planes, 0)
assert np.array_equal(planes, adamas_core.reference.encode(k, t))
adamas_core.gpu.why_not()
assert version("adamas-core") == adamas_core.__version__
assert all(k.source for k in adamas_core.gpu._kernels.KERNELS)
print(adamas_core.__file__, adamas_core.reference.__file__, _pack.__file__, sep="\\n")
"""


def run(*command: object, cwd: Path, levels: str = "none") -> str:
    """Standard output of a command that must succeed. A build makes the library for `levels`."""
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env={**os.environ, "ADAMAS_LEVELS": levels},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def copy_of_the_tree(to: Path) -> Path:
    """A clean checkout: nothing that was built or cached comes along."""
    made = ("*.so", "_pack.c", "_address.c", "_*_api.h", "*.nbi", "*.nbc", "*.cmake", "*.pc")
    ignore = shutil.ignore_patterns("__pycache__", *made)
    for folder in (*FOLDERS, "tests"):
        shutil.copytree(ROOT / folder, to / folder, ignore=ignore)
    for name in ("pyproject.toml", "setup.cfg", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, to)
    return to


def environment(folder: Path, packages: tuple[str, ...] = ()) -> Path:
    """The Python of a fresh environment, which borrows this one's packages but not adamas-core.

    It borrows all of them, or those that are named.
    """
    run(sys.executable, "-m", "venv", "--without-pip", folder, cwd=folder.parent)
    python = folder / "bin" / "python"
    where = "import sysconfig; print(sysconfig.get_path('purelib'))"
    site = Path(run(python, "-c", where, cwd=folder).strip())
    borrowed = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    if packages:
        for name in packages:
            for home in map(Path, borrowed):
                for found in home.glob(f"{name}*"):
                    if not (site / found.name).exists():
                        (site / found.name).symlink_to(found)
    else:
        (site / "borrowed.pth").write_text("\n".join(borrowed) + "\n")
    return python


def install(python: Path, *what: object, cwd: Path) -> None:
    """Install into an environment without any download."""
    options = ["-q", "--no-deps", "--no-index", "--no-build-isolation", "--force-reinstall"]
    run(sys.executable, "-m", "pip", "--python", python, "install", *options, *what, cwd=cwd)


def used_files(python: Path, cwd: Path) -> list[Path]:
    """The files of the package, its reference and its compiled module, as imported in a folder."""
    return [Path(line).resolve() for line in run(python, "-c", USE, cwd=cwd).splitlines()]


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A wheel of the tree, with the library of this machine, and one of the tree's sdist."""
    tree = copy_of_the_tree(tmp_path_factory.mktemp("wheel"))
    objects = ROOT / "build" / "native"
    if objects.is_dir():  # so that kernels that have not changed are not compiled again
        shutil.copytree(objects, tree / "build" / "native")
    make = [sys.executable, "-m", "build", "-q", "--no-isolation"]
    run(*make, "--wheel", tree, cwd=tree, levels="")
    (wheel,) = (tree / "dist").glob("*.whl")

    tree = copy_of_the_tree(tmp_path_factory.mktemp("sdist"))
    run(*make, "--sdist", tree, cwd=tree)
    (sdist,) = (tree / "dist").glob("*.tar.gz")
    unpacked = tmp_path_factory.mktemp("unpacked")
    with tarfile.open(sdist) as archive:
        archive.extractall(unpacked, filter="data")
    (source,) = unpacked.iterdir()
    run(*make, "--wheel", source, cwd=source)
    (wheel_of_sdist,) = (source / "dist").glob("*.whl")
    return {"tree": wheel, "sdist": wheel_of_sdist}


@pytest.fixture(scope="module", params=["tree", "sdist"])
def which(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def wheel(which: str, wheels: dict[str, Path]) -> Path:
    return wheels[which]


def test_a_wheel_holds_the_tree_and_nothing_else(wheel: Path, which: str) -> None:
    expected = {
        f"{home}/{file.relative_to(ROOT / folder).as_posix()}"
        for folder, home in FOLDERS.items()
        for file in (ROOT / folder).rglob("*")
        if file.suffix in SHIPPED and "__pycache__" not in file.parts
        if not (file.suffix in {".c", ".h"} and file.name.startswith("_"))  # made by Cython
    }
    suffix = sysconfig.get_config_var("EXT_SUFFIX")
    expected |= {f"adamas_core/cpu/{name}{suffix}" for name in ("_pack", "_address")}
    if which == "tree":
        expected |= {f"adamas_core/cpu/native/lib/{name}" for name in NATIVE}
        if with_jax.missing() is None:
            expected.add(f"adamas_core/cpu/native/lib/{handler.name_of(native.stamp())}")
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
        assert any(name.endswith("/licenses/LICENSE") for name in archive.namelist())
    # A file that is missing lies in a folder that pyproject.toml does not list under packages.
    assert held == expected


def test_an_installed_wheel(wheel: Path, tmp_path: Path) -> None:
    python = environment(tmp_path / "venv")
    tree = tmp_path / "tree"
    tree.mkdir()
    copy_of_the_tree(tree)
    install(python, wheel, cwd=tmp_path)

    for file in used_files(python, cwd=tmp_path):
        assert tmp_path / "venv" in file.parents
    found = "from importlib.util import find_spec as f; print([f(n) for n in ('cpu', 'gpu')])"
    assert run(python, "-c", found, cwd=tmp_path) == "[None, None]\n"

    # At the root the tree's Python files run, with the wheel's compiled module.
    package, reference, compiled = used_files(python, cwd=tree)
    assert (package, reference) == (
        tree / "adamas_core" / "__init__.py",
        tree / "reference" / "__init__.py",
    )
    assert tmp_path / "venv" in compiled.parents


def test_the_wheel_passes_tests_away_from_the_tree(wheels: dict[str, Path], tmp_path: Path) -> None:
    python = environment(tmp_path / "venv")
    install(python, wheels["tree"], cwd=tmp_path)
    shutil.copytree(ROOT / "tests", tmp_path / "tests")
    shutil.copy(ROOT / "setup.cfg", tmp_path)
    options = ["-q", "-o", "pythonpath=", "-p", "no:cacheprovider"]
    tests = ["tests/test_cpu_pack.py", "tests/test_import.py"]
    run(python, "-m", "pytest", *options, *tests, cwd=tmp_path)


def test_an_installed_library(wheels: dict[str, Path], tmp_path: Path) -> None:
    """Without Numba in the environment, and in a folder that says nothing of the tree."""
    python = environment(tmp_path / "venv", ("numpy", "array_api_compat"))
    install(python, wheels["tree"], cwd=tmp_path)
    code = """
import sys
import numpy as np
import adamas_core
from adamas_core.cpu._engine import ENGINE
x = np.ones((2, 1, 70, 64), np.float32)
found = adamas_core.attend(x[:, :, :1], x, x, adamas_core.select_topk(x[:, :, :1],
    adamas_core.encode(x), 9))
assert (found == 1).all() and "numba" not in sys.modules
print(ENGINE.name, adamas_core.get_library(), adamas_core.get_include(), sep="\\n")"""
    engine, library, include = run(python, "-c", code, cwd=tmp_path).splitlines()
    assert engine == "library"
    for path in (Path(library), Path(include) / "adamas.h"):
        assert path.is_file()
        assert tmp_path / "venv" in path.parents


@pytest.mark.parametrize("mode", ["default", "strict", "compat"])
def test_an_editable_install(mode: str, tmp_path: Path) -> None:
    python = environment(tmp_path / "venv")
    tree = tmp_path / "tree"
    tree.mkdir()
    copy_of_the_tree(tree)
    settings = [] if mode == "default" else ["--config-settings", f"editable_mode={mode}"]
    install(python, *settings, "-e", tree, cwd=tmp_path)
    for cwd in (tree, tmp_path):
        for file in used_files(python, cwd=cwd):
            assert tree in file.parents
