"""The disk cache of CUDA kernels: damaged files, and folders that cannot be written."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import pytest

from adamas_core.gpu import _compiled
from adamas_core.gpu._kernels import HADAMARD
from adamas_core.gpu._nvrtc import Binary

CODE = bytes(range(256)) + b"\0"  # machine code may end with any byte
VARIANT = HADAMARD.variants[0]


class Compiler:
    """Stands for NVRTC, and counts."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, *_: object) -> Binary:
        self.calls += 1
        return Binary(CODE, "symbol", "", "")


@pytest.fixture
def compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Compiler:
    cuda, nvrtc = ModuleType("cupy.cuda"), ModuleType("cupy.cuda.nvrtc")
    nvrtc.getVersion = lambda: (12, 9)  # type: ignore[attr-defined]
    cuda.nvrtc = nvrtc  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "cupy.cuda", cuda)
    compiler = Compiler()
    monkeypatch.setattr(_compiled, "compile_variant", compiler)
    monkeypatch.setenv("CUPY_CACHE_DIR", str(tmp_path))
    _compiled._announce.cache_clear()
    return compiler


def check() -> Path:
    path, symbol = _compiled.compiled(HADAMARD, VARIANT, "sm_90")
    assert (path.read_bytes(), symbol) == (CODE, "symbol")
    return path


def test_a_variant_is_compiled_once(compiler: Compiler, tmp_path: Path) -> None:
    assert check() == check()
    assert compiler.calls == 1
    assert sorted(p.suffix for p in tmp_path.iterdir()) == [".cubin", ".name"]


@pytest.mark.parametrize("suffix", [".cubin", ".name"])
def test_a_damaged_file_is_compiled_anew(compiler: Compiler, suffix: str) -> None:
    path = check().with_suffix(suffix)
    whole = path.read_bytes()
    damaged = [whole[:length] for length in (0, 1, len(whole) // 2, len(whole) - 1)]
    for bit in 0, 4 * len(whole), 8 * len(whole) - 1:
        flipped = bytearray(whole)
        flipped[bit // 8] ^= 1 << bit % 8
        damaged.append(bytes(flipped))
    for count, bad in enumerate([*damaged, whole + b" ", b"\xff  ", b"symbol"], 1):
        path.write_bytes(bad)
        check()
        assert compiler.calls == 1 + count
    path.unlink()
    check()
    path.unlink()
    path.mkdir()
    check()


def test_a_folder_that_cannot_be_written(
    compiler: Compiler, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CUPY_CACHE_DIR", "/dev/null/kernels")
    check()
    check()
    assert capfd.readouterr().err.count("Set CUPY_CACHE_DIR to a folder") == 1


def test_a_user_without_a_home(
    compiler: Compiler, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("CUPY_CACHE_DIR")

    def unknown() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", unknown)
    check()
    assert "Could not determine home" in capfd.readouterr().err


def test_a_write_that_fails_leaves_nothing(
    compiler: Compiler, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(_compiled.os, "replace", full)
    check()
    assert not list(tmp_path.iterdir())
