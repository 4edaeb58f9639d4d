"""Appending tokens in Cython gives the bits of the reference and touches nothing else."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from adamas_core.cpu import _pack
from adamas_core.reference import encode, hadamard

DTYPES = [np.dtype(np.float32), np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16)]
Planes = NDArray[np.uint64]


def keys(rng: np.random.Generator, shape: tuple[int, ...], dtype: Any, kind: str) -> NDArray[Any]:
    """Keys of a dtype: plain numbers, numbers of every magnitude, or any bit pattern at all."""
    if kind == "plain":
        return rng.standard_normal(shape).astype(dtype)
    unsigned = np.dtype(f"u{dtype.itemsize}")
    bits = rng.integers(0, 2 ** (8 * dtype.itemsize), shape, dtype=unsigned)
    anything = bits.view(dtype)
    if kind == "bits":
        return anything
    assert kind == "finite"
    with np.errstate(invalid="ignore"):
        return np.where(np.isfinite(anything), anything, dtype.type(0))


def key_planes(rng: np.random.Generator, B: int, H: int, T: int, D: int) -> tuple[Planes, Planes]:
    """A buffer of noise with room to spare on every leading axis, and the planes inside it."""
    P = -(-(1 << (D - 1).bit_length()) // 64)
    buffer = rng.integers(0, 2**64, (3, B + 1, H + 2, T + 2, 8, P, 8), dtype=np.uint64)
    return buffer, buffer[:2, 1:, 1 : H + 1, 1 : T + 1]


def in_layout(k: NDArray[Any], layout: str) -> NDArray[Any]:
    """The same keys (B, H_kv, S, D) with other strides."""
    if layout == "tokens first":  # stored (B, S, H_kv, D)
        return np.ascontiguousarray(k.transpose(0, 2, 1, 3)).transpose(0, 2, 1, 3)
    if layout == "part of a row":
        wide = np.zeros((*k.shape[:-1], k.shape[-1] + 3), k.dtype)
        wide[..., 2:-1] = k
        return wide[..., 2:-1]
    if layout == "reversed heads":
        return np.ascontiguousarray(k[:, ::-1])[:, ::-1]
    k = k.copy()
    k.flags.writeable = False
    return k


@given(
    seed=st.integers(0, 2**32 - 1),
    B=st.integers(1, 2),
    H=st.integers(1, 3),
    S=st.sampled_from([1, 1, 1, 2, 65]),
    D=st.one_of(st.integers(1, 300), st.integers(1, 2048)),
    dtype=st.sampled_from(DTYPES),
    kind=st.sampled_from(["plain", "finite", "bits"]),
    layout=st.sampled_from(["tokens first", "part of a row", "reversed heads", "read-only"]),
    shared_thresholds=st.booleans(),
    many_starts=st.booleans(),
)
@example(0, 1, 8, 1, 128, DTYPES[1], "plain", "tokens first", False, False)
@example(0, 1, 1, 1, 2048, DTYPES[0], "plain", "read-only", True, False)
@example(0, 1, 1, 1, 1, DTYPES[2], "bits", "read-only", True, False)
@settings(deadline=None)
def test_equals_the_reference(
    seed: int,
    B: int,
    H: int,
    S: int,
    D: int,
    dtype: Any,
    kind: str,
    layout: str,
    shared_thresholds: bool,
    many_starts: bool,
) -> None:
    rng = np.random.default_rng(seed)
    k = in_layout(keys(rng, (B, H, S, D), dtype, kind), layout)
    # Thresholds out of the transformed values themselves, so that ties are met.
    x = hadamard(k)
    picks = rng.integers(0, x[0, 0].size, 3)
    thresholds = x.reshape(B, H, -1)[0][:, picks]
    thresholds = np.sort(thresholds[0] if shared_thresholds else thresholds, axis=-1)

    T = 3
    start: Any = int(rng.integers(0, 64 * T - S + 1))
    if many_starts:
        start = rng.integers(0, 64 * T - S + 1, B).astype(rng.choice(["i4", "i8", "u4"]))
    buffer, planes = key_planes(rng, B, H, T, D)
    expected = buffer.copy()
    encode(k, thresholds, expected[:2, 1:, 1 : H + 1, 1 : T + 1], start)

    _pack.append(k, thresholds, planes, start)

    np.testing.assert_array_equal(buffer, expected)


@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
def test_every_16_bit_number(dtype: Any) -> None:
    # With D = 1 the transform is the widening alone. Thresholds are subnormal, plain and huge.
    k = np.arange(2**16, dtype=np.uint16).view(dtype).reshape(1, 1, -1, 1)
    tiny = np.finfo(np.float16).smallest_subnormal
    for thresholds in ([-tiny, 0, tiny], [-np.inf, 1, np.inf], [-2048, -1, 65504]):
        t = np.array(thresholds, np.float32)
        planes = np.zeros((2, 1, 1, 2**16 // 64, 8, 1, 8), np.uint64)
        _pack.append(k, t, planes, 0)
        np.testing.assert_array_equal(planes, encode(k, t))


def test_thresholds_need_not_be_sorted_or_numbers() -> None:
    k = np.random.default_rng(0).standard_normal((1, 1, 1, 64)).astype(np.float32)
    for thresholds in ([1, 0, -1], [np.nan, 0, 0], [0, np.nan, 0.5]):
        t = np.array(thresholds, np.float32)
        planes = np.zeros((2, 1, 1, 1, 8, 1, 8), np.uint64)
        _pack.append(k, t, planes, 0)
        np.testing.assert_array_equal(planes, encode(k, t))


def good_arguments() -> dict[str, Any]:
    return {
        "k": np.ones((2, 3, 1, 100), np.float32),
        "thresholds": np.zeros((3, 3), np.float32),
        "planes": np.zeros((2, 2, 3, 2, 8, 2, 8), np.uint64),
        "start": 0,
    }


@pytest.mark.parametrize(
    ("error", "change"),
    [
        (IndexError, {"start": 128}),
        (IndexError, {"start": -1}),
        (IndexError, {"start": 2**70}),
        (IndexError, {"start": np.array([0, 128])}),
        (IndexError, {"start": np.array([0, 2**64 - 1], np.uint64)}),
        (IndexError, {"planes": np.zeros((2, 2, 3, 0, 8, 2, 8), np.uint64)}),
        (TypeError, {"start": 0.0}),
        (TypeError, {"start": np.array([0.0, 1.0])}),
        (ValueError, {"start": np.array([0, 1, 2])}),
        (TypeError, {"k": np.ones((2, 3, 1, 100))}),
        (TypeError, {"k": np.ones((2, 3, 1, 100), np.int32)}),
        (TypeError, {"k": np.ones((2, 3, 1, 100), ">f4")}),
        (TypeError, {"k": np.ones((2, 3, 1, 100), ">f2")}),
        (TypeError, {"k": np.ones((2, 3, 1, 100), ml_dtypes.float8_e4m3fn)}),
        (TypeError, {"thresholds": np.zeros((3, 3))}),
        (TypeError, {"planes": np.zeros((2, 2, 3, 2, 8, 2, 8), np.int64)}),
        (TypeError, {"planes": np.zeros((2, 2, 3, 2, 8, 2, 8), ">u8")}),
        (ValueError, {"k": np.ones((2, 3, 100), np.float32)}),
        (ValueError, {"k": np.ones((1, 3, 1, 100), np.float32)}),
        (ValueError, {"k": np.ones((2, 4, 1, 100), np.float32)}),
        (ValueError, {"k": np.ones((2, 3, 1, 0), np.float32)}),
        (ValueError, {"k": np.ones((2, 3, 1, 129), np.float32)}),
        (ValueError, {"k": np.ones((2, 3, 1, 2049), np.float32)}),
        (ValueError, {"k": np.ones((2, 3, 1, 200), np.float32)[..., ::2]}),
        (ValueError, {"k": np.ones((2, 3, 1, 200), np.float16)[..., ::2]}),
        (ValueError, {"thresholds": np.zeros((2, 3), np.float32)}),
        (ValueError, {"thresholds": np.zeros((3, 2), np.float32)}),
        (ValueError, {"thresholds": np.zeros(4, np.float32)}),
        (ValueError, {"planes": np.zeros((1, 2, 3, 2, 8, 2, 8), np.uint64)}),
        (ValueError, {"planes": np.zeros((2, 2, 3, 2, 8, 1, 8), np.uint64)}),
        (ValueError, {"planes": np.zeros((2, 2, 3, 2, 7, 2, 8), np.uint64)}),
        (ValueError, {"planes": np.zeros((2, 2, 3, 2, 8, 2, 8), np.uint64)[:, :, :, ::-1]}),
        (ValueError, {"planes": np.zeros((2, 2, 3, 2, 8, 8, 2), np.uint64).swapaxes(-1, -2)}),
        (ValueError, {"planes": np.zeros((2, 2, 3, 2, 2, 8, 8), np.uint64).swapaxes(-2, -3)}),
        (ValueError, {"planes": np.zeros((2, 2, 3, 2, 8), np.uint64)}),
    ],
)
def test_what_does_not_fit_is_refused(error: type[Exception], change: dict[str, Any]) -> None:
    _pack.append(**good_arguments())
    arguments = good_arguments() | change
    with pytest.raises(error):
        _pack.append(**arguments)
    assert not arguments["planes"].any()


def test_read_only_planes_are_refused() -> None:
    arguments = good_arguments()
    arguments["planes"].flags.writeable = False
    with pytest.raises(ValueError, match="read-only"):
        _pack.append(**arguments)


def test_threads_append_to_their_own_tokens() -> None:
    rng = np.random.default_rng(0)
    k = rng.standard_normal((1, 2, 256, 128)).astype(np.float16)
    t = np.array([-1, 0, 1], np.float32)
    planes = np.zeros((2, 1, 2, 4, 8, 2, 8), np.uint64)

    def work(first: int) -> None:
        for token in range(first, 256, 4):
            _pack.append(k[:, :, token : token + 1], t, planes, token)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    np.testing.assert_array_equal(planes, encode(k, t))


CALLER = """
# cython: language_level=3
from libc.stdint cimport uint16_t, uint64_t
from adamas_core.cpu._pack cimport append_bfloat16, append_float16, append_float32

def single(const float[::1] key, const float[::1] t, uint64_t[::1] high, uint64_t[::1] low, n):
    cdef Py_ssize_t token = n
    cdef int result
    with nogil:
        result = append_float32(&key[0], key.shape[0], &t[0], &high[0], &low[0], token)
    return result

def half(const uint16_t[::1] key, const float[::1] t, uint64_t[::1] high, uint64_t[::1] low, n):
    return append_float16(&key[0], key.shape[0], &t[0], &high[0], &low[0], n)

def brain(const uint16_t[::1] key, const float[::1] t, uint64_t[::1] high, uint64_t[::1] low, n):
    return append_bfloat16(&key[0], key.shape[0], &t[0], &high[0], &low[0], n)
"""

USE = """
import sys
import ml_dtypes, numpy as np
import caller
from adamas_core.reference import encode

rng = np.random.default_rng(0)
t = np.array([-1, 0.25, 1], np.float32)
for call, dtype, word in [
    (caller.single, np.float32, np.float32),
    (caller.half, np.float16, np.uint16),
    (caller.brain, ml_dtypes.bfloat16, np.uint16),
]:
    for D in (1, 80, 128, 2048):
        k = rng.standard_normal((1, 1, 1, D)).astype(dtype)
        expected = encode(np.zeros((1, 1, 128, D), np.float32), t)
        planes = expected.copy()
        encode(k, t, expected, 77)
        assert call(k.view(word).ravel(), t, planes[0].ravel(), planes[1].ravel(), 77) == 0
        assert np.array_equal(planes, expected), (dtype, D)
    too_wide = np.zeros(2049, word)
    before = planes.copy()
    assert call(too_wide, t, planes[0].ravel(), planes[1].ravel(), 0) == -1
    assert np.array_equal(planes, before)
print("equal")
"""

SETUP = """
from Cython.Build import cythonize
from setuptools import setup
setup(name="caller", py_modules=[], ext_modules=cythonize("caller.pyx", include_path=["include"]))
"""


def test_a_c_caller(tmp_path: Path) -> None:
    """A Cython module of someone else finds _pack.pxd, calls the functions and gets the bits."""
    (tmp_path / "caller.pyx").write_text(CALLER)
    (tmp_path / "setup.py").write_text(SETUP)
    (tmp_path / "use.py").write_text(USE)
    pxd = Path(_pack.__file__).with_name("_pack.pxd")
    if pxd.parent.parent.name != "adamas_core":
        # The tree keeps the folder cpu beside adamas_core, where Cython does not look for it.
        home = tmp_path / "include" / "adamas_core" / "cpu"
        home.mkdir(parents=True)
        for folder in (home, home.parent):
            (folder / "__init__.py").touch()
        shutil.copy(pxd, home)

    root = Path(sys.modules["adamas_core"].__file__ or "").parent.parent
    environment = {**os.environ, "PYTHONPATH": str(root)}
    for command in (["setup.py", "-q", "build_ext", "--inplace"], ["use.py"]):
        done = subprocess.run(
            [sys.executable, *command],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout == "equal\n"
