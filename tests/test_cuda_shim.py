"""The shim itself: right kernels pass and give the right numbers, and mistakes are caught."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from cuda_on_cpu import machine
from cuda_on_cpu.machine import KernelFault, Program, launch
from cuda_on_cpu.marks import BUILDS_PROGRAMS

from adamas_core.gpu._kernels import headers

pytestmark = BUILDS_PROGRAMS

# Thread i gives its number to thread N - 1 - i, through shared memory.
REVERSE = """
#include "common.cuh"
template <int N>
__global__ void reverse(const int* x, int* y) {
  __shared__ int numbers[N];
  numbers[threadIdx.x] = x[blockIdx.x * N + threadIdx.x];
  __syncthreads();
  y[blockIdx.x * N + threadIdx.x] = numbers[N - 1 - threadIdx.x];
}
"""

# Lane i gives its number to lane 31 - i, through dynamic shared memory.
REVERSE_WARP = """
#include "common.cuh"
__global__ void reverse(const int* x, int* y) {
  DYN_SHARED(int, numbers);
  const int i = threadIdx.x;
  numbers[i] = x[i];
  __syncwarp();
  y[i] = numbers[i ^ 31];
}
"""


@pytest.fixture
def programs() -> Iterator[Any]:
    """A function that builds a source with its kernels. The processes end with the test."""
    made: list[Program] = []

    def build(source: str, *kernels: str, included: dict[str, str] | None = None) -> Program:
        made.append(
            Program("test.cu", source, headers() if included is None else included, kernels)
        )
        return made[-1]

    yield build
    for program in made:
        program.close()


def run_reverse(program: Program) -> None:
    x = np.arange(3 * 64, dtype=np.int32)
    y = np.full_like(x, -7)
    launch(program, "reverse<64>", (3,), 64, (x, y))
    np.testing.assert_array_equal(y.reshape(3, 64), x.reshape(3, 64)[:, ::-1])


def test_a_right_kernel(programs: Any) -> None:
    program = programs(REVERSE, "reverse<64>")
    for _ in range(3):
        run_reverse(program)


@pytest.mark.parametrize(
    ("right", "wrong", "report"),
    [
        ("  __syncthreads();\n", "", "depends on the order"),
        ("N - 1 - threadIdx.x", "N - threadIdx.x", "index 64 out of bounds"),
        (
            "numbers[threadIdx.x] =",
            "int* p = numbers; p[threadIdx.x + 1] =",
            "global-buffer-overflow",
        ),
        ("y[blockIdx.x * N", "y[1 + blockIdx.x * N", "AddressSanitizer: heap-buffer-overflow"),
        ("= x[blockIdx", "= x[-1 + blockIdx", "AddressSanitizer"),
        (
            "numbers[threadIdx.x] =",
            "if (threadIdx.x) numbers[threadIdx.x] =",
            "depends on the order",
        ),
        ("  __syncthreads();", "  if (threadIdx.x < 9) __syncthreads();\n  else\n__syncthreads();",
         r"line 8 meets that of line|line \d+ meets that of line"),
    ],
    ids=["no barrier", "shared read", "shared write", "write", "read", "unset shared", "divergent"],
)  # fmt: skip
def test_a_broken_kernel(programs: Any, right: str, wrong: str, report: str) -> None:
    assert right in REVERSE
    with pytest.raises(KernelFault, match=report):
        run_reverse(programs(REVERSE.replace(right, wrong), "reverse<64>"))


def test_the_next_launch_after_a_fault(programs: Any) -> None:
    program = programs(REVERSE, "reverse<64>")
    with pytest.raises(KernelFault, match="heap-buffer-overflow"):
        launch(program, "reverse<64>", (4,), 64, (np.zeros(192, np.int32), np.zeros(192, np.int32)))
    run_reverse(program)


@pytest.mark.parametrize(
    ("right", "wrong", "shared", "report"),
    [
        ("", "", 128, None),
        ("  __syncwarp();\n", "", 128, "depends on the order"),
        ("", "", 124, "AddressSanitizer: heap-buffer-overflow"),
        ("__syncwarp();", "if (i != 5) __syncwarp();", 128, "deadlock at line 7"),
        ("__syncwarp();", "__syncwarp(0xfffffffe);", 128, "not in its own mask"),
        ("__syncwarp();", "for (;;) __syncwarp();", 128, "no answer within"),
    ],
    ids=["right", "no barrier", "dynamic shared", "a lane is missing", "mask", "endless"],
)
def test_a_warp(
    programs: Any, monkeypatch: Any, right: str, wrong: str, shared: int, report: str | None
) -> None:
    monkeypatch.setattr(machine, "PATIENCE", 5.0)
    program = programs(REVERSE_WARP.replace(right, wrong) if right else REVERSE_WARP, "reverse")
    x, y = np.arange(32, dtype=np.int32), np.zeros(32, np.int32)
    if report is None:
        launch(program, "reverse", (1,), 32, (x, y), shared)
        np.testing.assert_array_equal(y, x[::-1])
    else:
        with pytest.raises(KernelFault, match=report):
            launch(program, "reverse", (1,), 32, (x, y), shared)


def test_arguments_are_held_against_the_signature(programs: Any) -> None:
    program = programs(REVERSE, "reverse<64>")
    x = np.zeros(64, np.int32)
    for arguments, report in [
        ((x,), "1 arguments, and the kernel takes 2"),
        ((x, 3), "argument 1 is no array"),
    ]:
        with pytest.raises(KernelFault, match=report):
            launch(program, "reverse<64>", (1,), 64, arguments)
    frozen = x.copy()
    frozen.setflags(write=False)
    with pytest.raises(KernelFault, match="read-only"):
        launch(program, "reverse<64>", (1,), 64, (np.arange(64, dtype=np.int32), frozen))
    for grid, threads, shared in [((0,), 64, 0), ((1,), 1025, 0), ((1,), 64, 2**20)]:
        with pytest.raises(KernelFault):
            launch(program, "reverse<64>", grid, threads, (x, x.copy()), shared)


def test_a_misaligned_vector_is_refused(programs: Any) -> None:
    source = """
#include "common.cuh"
__global__ void copy(const int* x, int* y) {
  *reinterpret_cast<int4*>(y) = *reinterpret_cast<const int4*>(x);
}
"""
    program = programs(source, "copy")
    y = np.zeros(8, np.int32)
    aligned = -(y.__array_interface__["data"][0] // 4) % 4
    good = y[aligned : aligned + 4]
    launch(program, "copy", (1,), 1, (np.arange(4, dtype=np.int32), good))
    np.testing.assert_array_equal(good, np.arange(4))
    with pytest.raises(KernelFault, match="misaligned address"):
        launch(program, "copy", (1,), 1, (np.arange(5, dtype=np.int32)[1:], good))


@pytest.mark.parametrize(
    ("expression", "report"),
    [("x[0] << x[1]", "shift exponent 32"), ("int(x[2] / 0.0f)", "outside the range")],
)
def test_operations_that_differ_between_processors_are_refused(
    programs: Any, expression: str, report: str
) -> None:
    source = f"""
#include "common.cuh"
__global__ void f(const int* x, int* y) {{ *y = {expression}; }}
"""
    arguments = (np.array([1, 32, 5], np.int32), np.zeros(1, np.int32))
    with pytest.raises(KernelFault, match=report):
        launch(programs(source, "f"), "f", (1,), 1, arguments)


def test_strided_and_overlapping_arguments(programs: Any) -> None:
    """A kernel sees the same distances between views of one array as the caller."""
    source = """
#include "common.cuh"
__global__ void add(const float* x, Int step, const float* shift, float* y, float factor) {
  y[threadIdx.x] = (shift ? *shift : 0.0f) + factor * x[threadIdx.x * step];
}
"""
    program = programs(source, "add")
    x = np.arange(40, dtype=np.float32)
    launch(program, "add", (1,), 10, (x[1:30:3], 3, x[4:5], x[30:], 2.0))
    np.testing.assert_array_equal(x[30:], 4 + 2 * np.arange(1, 31, 3))
    launch(program, "add", (1,), 10, (x[9::-1], -1, None, x[30:], 1.0))
    np.testing.assert_array_equal(x[30:], np.arange(10)[::-1])


def test_exchanges_of_a_warp(programs: Any) -> None:
    source = """
#include "common.cuh"
__global__ void all(const int* x, int* y) {
  const int lane = threadIdx.x % 32, v = x[threadIdx.x];
  int* out = y + threadIdx.x;
  const int n = blockDim.x;
  out[0 * n] = __shfl_sync(ALL_LANES, v, 7);
  out[1 * n] = __shfl_sync(ALL_LANES, v, lane + 3, 8);
  out[2 * n] = __shfl_up_sync(ALL_LANES, v, 5);
  out[3 * n] = __shfl_down_sync(ALL_LANES, v, 3, 16);
  out[4 * n] = __shfl_xor_sync(ALL_LANES, v, 12);
  out[5 * n] = static_cast<int>(__ballot_sync(ALL_LANES, v & 1));
  out[6 * n] = __reduce_add_sync(ALL_LANES, v);
  out[7 * n] = __reduce_max_sync(ALL_LANES, v);
  out[8 * n] = static_cast<int>(__match_any_sync(ALL_LANES, v));
  out[9 * n] = __any_sync(ALL_LANES, v == 3) * 2 + __all_sync(ALL_LANES, v >= 0);
  out[10 * n] = lane < 16 ? __shfl_xor_sync(0xffffu, v, 1) : __shfl_xor_sync(0xffff0000u, v, 2);
  out[11 * n] = __syncthreads_count(v & 1) * 4 + __syncthreads_or(v == 3) * 2
      + __syncthreads_and(v >= 0);
}
"""
    n = 96
    x = np.random.default_rng(0).integers(0, 9, n, dtype=np.int32)
    y = np.zeros((12, n), np.int32)
    launch(programs(source, "all"), "all", (1,), n, (x, y))
    w = x.reshape(-1, 32)
    i = np.arange(32)
    bits = (w & 1) << i
    column = [
        w[:, [7] * 32],
        w[:, i // 8 * 8 + (i + 3) % 8],
        w[:, np.where(i >= 5, i - 5, i)],
        w[:, np.where(i % 16 < 13, i + 3, i)],
        w[:, i ^ 12],
        bits.sum(1, keepdims=True),
        w.sum(1, keepdims=True),
        w.max(1, keepdims=True),
        ((w[:, :, None] == w[:, None, :]).astype(np.int64) << i).sum(-1),
        (w == 3).any(1, keepdims=True) * 2 + (w >= 0).all(1, keepdims=True),
        w[:, np.where(i < 16, i ^ 1, i ^ 2)],
        np.full((1, 1), (x & 1).sum() * 4 + (x == 3).any() * 2 + (x >= 0).all()),
    ]
    for got, expected in zip(y, column, strict=True):
        wide = np.broadcast_to(np.asarray(expected), w.shape).astype(np.int64)
        np.testing.assert_array_equal(got.reshape(w.shape), wide.astype(np.int32))


def test_atomics(programs: Any) -> None:
    source = """
#include "common.cuh"
__global__ void count(const int* x, int* bins, unsigned* ticket, unsigned* orders) {
  __shared__ int own[4];
  if (threadIdx.x < 4) own[threadIdx.x] = 0;
  __syncthreads();
  atomicAdd(&own[x[blockIdx.x * blockDim.x + threadIdx.x]], 1);
  __syncthreads();
  if (threadIdx.x < 4) atomicAdd(&bins[threadIdx.x], own[threadIdx.x]);
  if (threadIdx.x == 0 && atomicInc(ticket, gridDim.x - 1) == gridDim.x - 1) *orders = 1;
}
"""
    x = np.random.default_rng(1).integers(0, 4, 5 * 70, dtype=np.int32)
    bins, ticket, orders = np.zeros(4, np.int32), np.zeros(1, np.uint32), np.zeros(1, np.uint32)
    launch(programs(source, "count"), "count", (5,), 70, (x, bins, ticket, orders))
    np.testing.assert_array_equal(bins, np.bincount(x, minlength=4))
    assert (ticket[0], orders[0]) == (0, 1)


def test_conversions(programs: Any) -> None:
    """Widen every 16-bit number, and round float32 of every kind, with NumPy's results."""
    source = """
#include "common.cuh"
template <typename T>
__global__ void convert(const T* x, float* wide, const float* y, T* narrow) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  wide[i] = to_float(x[i]);
  from_float(narrow[i], y[i]);
}
"""
    program = programs(source, "convert<Half>", "convert<BFloat16>")
    rng = np.random.default_rng(0)
    for name, dtype in [("Half", np.dtype(np.float16)), ("BFloat16", np.dtype(ml_dtypes.bfloat16))]:
        x = np.arange(2**16, dtype=np.uint16).view(dtype)
        y = rng.integers(0, 2**32, 2**16, dtype=np.uint32).view(np.float32)
        with np.errstate(all="ignore"):
            middle = x.astype(np.float32)[:-1] / 2 + x.astype(np.float32)[1:] / 2  # ties
            y[::3] = np.append(middle, 0)[::3]
            y[1::3] = rng.standard_normal(len(y[1::3])) * 2.0 ** rng.integers(-30, 18, len(y[1::3]))
            expected = y.astype(dtype)
        wide, narrow = np.zeros(2**16, np.float32), np.zeros(2**16, dtype)
        launch(program, f"convert<{name}>", (64,), 1024, (x, wide, y, narrow))
        np.testing.assert_array_equal(wide, x.astype(np.float32))
        same = (narrow.view(np.uint16) == expected.view(np.uint16)) | np.isnan(expected)
        assert same.all()
        np.testing.assert_array_equal(np.isnan(narrow), np.isnan(expected))


def test_fibers_without_assembly(programs: Any, monkeypatch: Any) -> None:
    """The switch between fibers that processors other than x86-64 use."""
    monkeypatch.setattr(machine, "OPTIONS", (*machine.OPTIONS, "-DSHIM_UCONTEXT"))
    run_reverse(programs(REVERSE, "reverse<64>"))


def test_a_file_that_does_not_compile(programs: Any) -> None:
    with pytest.raises(RuntimeError, match=r"g\+\+ on test.cu"):
        programs("__global__ void f() { nonsense(); }", "f")
