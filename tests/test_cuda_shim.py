"""The shim itself: right kernels pass and give the right numbers, broken ones are caught."""

from __future__ import annotations

import os
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from cuda_on_cpu import machine
from cuda_on_cpu.arrays import DeviceArray
from cuda_on_cpu.machine import Cpu, KernelFault, Program, launch
from tolerances import assert_attention, assert_same_bits

from adamas_core import encode, gpu, reference
from adamas_core.codes import RMS_SHARE, KeyCodes
from adamas_core.gpu import estimate, group
from adamas_core.gpu._kernels import HADAMARD, Kernel, headers
from adamas_core.reference.center import Centers
from adamas_core.reference.estimate import estimate as reference_estimate
from adamas_core.reference.estimate import rank
from adamas_core.reference.group import levels as reference_levels
from adamas_core.reference.group import pool as reference_pool
from adamas_core.reference.score import INVISIBLE

# Under CI a missing compiler is a failure.
pytestmark = pytest.mark.skipif(
    machine.missing() is not None and not os.environ.get("CI"), reason=str(machine.missing())
)

# Each thread hands its number over to the one opposite, through shared memory.
REVERSE = """
#include "common.cuh"
template <int N>
__global__ void reverse(const int* x, int* y) {
  __shared__ int kept[N];
  kept[threadIdx.x] = x[blockIdx.x * N + threadIdx.x];
  __syncthreads();
  y[blockIdx.x * N + threadIdx.x] = kept[N - 1 - threadIdx.x];
}
"""

# The same with dynamic shared memory and inside a warp.
REVERSE_WARP = """
#include "common.cuh"
__global__ void reverse(const int* x, int* y) {
  DYN_SHARED(int, kept);
  const int i = threadIdx.x;
  kept[i] = x[i];
  __syncwarp();
  y[i] = kept[i ^ 31];
}
"""


@pytest.fixture
def programs() -> Iterator[Any]:
    """A function that builds a text with its kernels; the processes end with the test."""
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
        ("kept[threadIdx.x] =", "int* p = kept; p[threadIdx.x + 1] =", "global-buffer-overflow"),
        ("y[blockIdx.x * N", "y[1 + blockIdx.x * N", "AddressSanitizer: heap-buffer-overflow"),
        ("= x[blockIdx", "= x[-1 + blockIdx", "AddressSanitizer"),
        ("kept[threadIdx.x] =", "if (threadIdx.x) kept[threadIdx.x] =", "depends on the order"),
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
def test_what_processors_do_differently_is_refused(
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
    """Every 16-bit number widened, and float32 of every kind rounded, as NumPy does it."""
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


@pytest.mark.parametrize(
    ("file", "right", "wrong"),
    [
        ("rows.cuh", "i < D ?", "i <= D ?"),
        ("hadamard.cu", "if (i < Dt) y[", "if (i <= Dt) y["),
        ("hadamard.cu", "if (row >= rows)", "if (row > rows)"),
    ],
)
def test_off_by_one_in_a_kernel_of_the_library(
    programs: Any, file: str, right: str, wrong: str
) -> None:
    texts = {**headers(), HADAMARD.file: HADAMARD.source}
    expression = HADAMARD.expression(("float", 1))
    x, y = np.ones((1, 1, 3, 12), np.float32), np.zeros((3, 16), np.float32)
    arguments = (x, 36, 36, 12, 1, 3, 3, 12, 16, 16**-0.5, y)
    launch(programs(texts[HADAMARD.file], expression, included=headers()), expression, (1,), 128,
           arguments)  # fmt: skip
    assert texts[file].count(right) == 1
    texts[file] = texts[file].replace(right, wrong)
    source = texts.pop(HADAMARD.file)
    with pytest.raises(KernelFault, match="heap-buffer-overflow"):
        launch(programs(source, expression, included=texts), expression, (1,), 128, arguments)


class Edited(Cpu):
    """Runs kernels whose text has been changed; each variant is a program of its own."""

    def __init__(self, file: str, right: str, wrong: str) -> None:
        super().__init__()
        self._file, self._right, self._wrong = file, right, wrong

    def program(self, kernel: Kernel, expression: str) -> Program:
        texts = {**headers(), kernel.file: kernel.source}
        assert texts[self._file].count(self._right) == 1
        texts[self._file] = texts[self._file].replace(self._right, self._wrong)
        return Program(kernel.file, texts.pop(kernel.file), texts, [expression])


RNG = np.random.default_rng(0)
LENGTHS = np.array([150, 97])
T3 = np.array([-RMS_SHARE, 0, RMS_SHARE], np.float32)


def compare_scores(H: int, L: int) -> None:
    """With the reference, as test_score does; H = 2 are counted, more become products."""
    query = RNG.integers(0, 2**64, (2, H, L, 4), np.uint64)
    planes = RNG.integers(0, 2**64, (2, 2, 2, 3, 8, 1, 8), np.uint64)
    distances = gpu.score(DeviceArray(query), DeviceArray(planes), DeviceArray(LENGTHS))
    assert_same_bits(distances.get(), reference.score(query, planes, LENGTHS))


def compare_attention(K: int) -> None:
    """With the reference, as test_attend does; more than a few tokens are split over blocks."""
    q, k, v = (
        RNG.standard_normal(shape).astype(np.float32)
        for shape in [(1, 2, 1, 32), (1, 1, 150, 32), (1, 1, 150, 32)]
    )
    indices = RNG.integers(0, 150, (1, 2, 1, K), np.int32)
    indices[..., -1] = 149
    out = gpu.attend(*(DeviceArray(x) for x in (q, k, v, indices)))
    exact = reference.attend(q.astype(np.float64), k, v, indices)
    assert_attention(out.get(), exact, q.dtype)


def compare_rerank(n: int) -> None:
    """With the reference, as test_rerank does; the last indices are no tokens of k."""
    q, k = (RNG.standard_normal((1, H, S, 40)).astype(np.float32) for H, S in [(2, 1), (1, n)])
    indices = np.broadcast_to(np.arange(n + 16, dtype=np.int32), (1, 2, 1, n + 16)).copy()
    best = gpu.rerank(*(DeviceArray(x) for x in (q, k, indices)), 8, 1, 2)
    assert_same_bits(best.get(), reference.rerank(q, k, indices[..., :n], 8, 1, 2))


def compare_topk() -> None:
    """Of 32 bits, in chunks of which the last has fewer visible tokens than the budget."""
    ranks = RNG.integers(0, 2**32 - 1, (2, 300), np.uint32)
    ranks[:, 270:] = 2**32 - 1
    best = gpu.topk(DeviceArray(ranks), 40, 1, 2)
    assert_same_bits(best.get(), reference.topk(ranks, 40, 1, 2))


def compare_centered() -> None:
    """Three calls that begin inside a tile, at its end and at its start, of two lengths."""
    planes = np.full((2, 2, 1, 6, 8, 1, 8), 7, np.uint64)
    centers = Centers(
        np.full((2, 1, 6, 16), 7, np.float16),
        np.full((2, 1, 6, 64), 7, np.uint8),
        np.full((2, 1, 64, 16), 7, np.float32),
    )
    expected = [x.copy() for x in (planes, *centers)]
    starts = np.zeros(2, np.int64)
    for S, counts in [(150, [150, 30]), (42, [42, 34]), (70, [70, 64])]:
        k = RNG.standard_normal((2, 1, S, 12)).astype(np.float32) + np.float32(1)
        at = starts, np.array(counts)
        reference.encode_centered(k, T3, expected[0], Centers(*expected[1:]), *at)
        there = [DeviceArray(x) for x in (k, T3, planes, *centers)]
        gpu.encode_centered(*there[:3], Centers(*there[3:]), *at)
        for got, wanted in zip((planes, *centers), expected, strict=True):
            assert_same_bits(got, wanted)
        starts += counts


def estimated(D: int, size: float, centered: bool = True) -> tuple[Any, ...]:
    """Transformed queries, their planes, distances and codes of 150 and 97 tokens."""
    k, q = (
        np.float32(size) * RNG.standard_normal((2, H, n, D)).astype(np.float32) + np.float32(1)
        for H, n in [(2, 150), (6, 2)]
    )
    thresholds = None if centered else np.zeros(3, np.float32)
    codes = encode(k, thresholds, LENGTHS, "reference", centered)
    x = reference.hadamard(q)
    query = reference.quantize_query(x)
    return x, query, reference.score(query, codes.planes, LENGTHS), codes


def on_device(codes: KeyCodes) -> Any:
    return SimpleNamespace(
        planes=DeviceArray(codes.planes),
        thresholds=DeviceArray(codes.thresholds),
        centers=codes.centers and Centers(*map(DeviceArray, codes.centers)),
    )


def compare_ranks(D: int, centered: bool) -> None:
    """With the reference, as test_select does; codes of no step have estimates of -0."""
    *arrays, codes = estimated(D, 1, centered)
    ranks = estimate.ranks(*map(DeviceArray, arrays), on_device(codes))
    assert_same_bits(ranks.get(), rank(reference_estimate(*arrays, codes), arrays[-1]))


def compare_levels(size: float) -> None:
    """Of the tokens that are seen."""
    *arrays, codes = estimated(40, size)
    seen = arrays[-1] != INVISIBLE
    levels = estimate.levels(*map(DeviceArray, arrays), on_device(codes), 40)
    expected = reference_levels(reference_estimate(*arrays, codes), 40).astype(np.int16)
    assert_same_bits(levels.get()[seen], expected[seen])


def compare_pool(size: float) -> None:
    """Of levels near together or far apart, in groups of three."""
    *arrays, codes = estimated(40, size)
    estimates, seen = reference_estimate(*arrays, codes), arrays[-1] != INVISIBLE
    levels = DeviceArray(reference_levels(estimates, 40).astype(np.int16))
    expected = rank(reference_pool(estimates, seen, 3, 40), arrays[-1][:, ::3])
    assert_same_bits(group.pool(levels, LENGTHS, 3).get(), expected)


ROWS_BARRIER = "    __syncthreads();\n    for (int i"
TURN_BARRIER = "    __syncthreads();\n  }\n  Half"
MEAN_BARRIER = "  __syncthreads();\n\n  planes +="
TOP_BARRIER = "  __syncthreads();\n  int own"
BEST_BARRIER = "  __syncthreads();\n  const int best"
TOTAL_BARRIER = "  __syncthreads();\n  if (threadIdx.x == 0) {\n    highest"
SCORE_BARRIER = "  __syncthreads();\n\n  const int n = lengths"
QUERY_BARRIER = "  __syncthreads();\n\n  using Part"
PRODUCTS_BARRIER = "  __syncthreads();\n  const int taken"
SUMS_BARRIER = "  __syncthreads();\n\n  // The row's sums"


@pytest.mark.parametrize(
    ("file", "right", "wrong", "compare"),
    [
        ("score.cu", SCORE_BARRIER, "  const int n = lengths", lambda: compare_scores(2, 1)),
        ("score.cu", "if (token < S)", "if (token <= S)", lambda: compare_scores(2, 1)),
        ("score.cu", "chunk, tiles)", "chunk, tiles - 1)", lambda: compare_scores(2, 1)),
        ("score.cuh", "(L - 1 - l)", "(L - l)", lambda: compare_scores(4, 2)),
        ("score.cuh", "rows < TILE; rows", "rows < TILE - 16; rows", lambda: compare_scores(4, 2)),
        ("score.cuh", "+ 2 * g + word", "+ 2 * g + 2 + word", lambda: compare_scores(4, 2)),
        ("attend.cu", SUMS_BARRIER, "  // The row's sums", lambda: compare_attention(4)),
        ("attend.cu", "== splits - 1u", "== splits - 2u", lambda: compare_attention(64)),
        ("attend.cu", "if (token < S) return", "if (token < S - 1) return",
         lambda: compare_attention(4)),
        ("attend.cu", "min(begin + size, count)", "min(begin + size + 1, count)",
         lambda: compare_attention(64)),
        ("attend.cu", "stride = SHARERS; stride < LANES;", "stride = SHARERS; stride < LANES / 2;",
         lambda: compare_attention(64)),
        ("rerank.cu", QUERY_BARRIER, "  using Part", lambda: compare_rerank(60)),
        ("rerank.cu", PRODUCTS_BARRIER, "  const int taken", lambda: compare_rerank(60)),
        ("rerank.cu", PRODUCTS_BARRIER, "  const int taken", lambda: compare_rerank(300)),
        ("rerank.cu", "token < S", "token <= S", lambda: compare_rerank(60)),
        ("rerank.cu", "stride = SHARERS / 2", "stride = SHARERS / 4", lambda: compare_rerank(60)),
        ("rerank.cu", "start < n", "start + teams <= n", lambda: compare_rerank(60)),
        ("common.cuh", "bits ^ 0x7fffffffu", "~bits", lambda: compare_rerank(60)),
        ("topk.cuh", "32 - BIN_BITS", "31 - BIN_BITS", lambda: compare_rerank(60)),
        ("topk.cuh", "kept[i] = NOT_THERE<T>", "kept[i] = INVISIBLE", compare_topk),
        ("topk.cu", "S - start)", "S - start + 1)", compare_topk),
        ("center.cu", ROWS_BARRIER, "    for (int i", compare_centered),
        ("center.cu", TURN_BARRIER, "  }\n  Half", compare_centered),
        ("center.cu", MEAN_BARRIER, "\n  planes +=", compare_centered),
        ("center.cu", "w < warps;", "w < warps - 1;", compare_centered),
        ("center.cu", "key < 0", "key <= 0", compare_centered),
        ("center.cu", "tile >= span.end / TILE", "tile > span.end / TILE", compare_centered),
        ("center.cu", "i < size) x[j]", "i <= size) x[j]", compare_centered),
        ("center.cu", "span.end - TILE)", "span.end - TILE + 1)", compare_centered),
        ("center.cu", "token < open * TILE", "token <= open * TILE", compare_centered),
        ("center.cu", "span.begin <= open", "span.begin < open", compare_centered),
        ("center.cu", "? means - Dt", "? means", compare_centered),
        ("center.cu", "(bits + (1 << (SCALE_SHIFT - 1)))", "bits", compare_centered),
        ("rows.cuh", "half = LANES / 4; half > 0; half /= 2", "half = 1; half < 16; half *= 2",
         lambda: compare_ranks(40, True)),
        ("rows.cuh", "upper ? other : own", "own", lambda: compare_ranks(40, True)),
        ("estimate.cu", "i < width ?", "i <= width ?", lambda: compare_ranks(12, True)),
        ("estimate.cu", "int b = 1;", "int b = 0;", lambda: compare_ranks(40, True)),
        ("estimate.cu", "__fadd_rn(estimate, 0.0f)", "estimate", lambda: compare_ranks(40, False)),
        ("estimate.cu", "min((tile + 1) * TILE, end)", "(tile + 1) * TILE",
         lambda: compare_ranks(40, True)),
        ("estimate.cu", "__fmul_rn(n, step), unit)", "n, __fmul_rn(step, unit))",
         lambda: compare_ranks(40, True)),
        ("estimate.cu", "fminf(level, 32767.0f)", "level", lambda: compare_levels(100)),
        ("estimate.cu", "floorf(", "rintf(", lambda: compare_levels(1)),
        ("group.cu", TOP_BARRIER, "  int own", lambda: compare_pool(5)),
        ("group.cu", BEST_BARRIER, "  const int best", lambda: compare_pool(5)),
        ("group.cu", TOTAL_BARRIER, TOTAL_BARRIER.partition("\n")[2], lambda: compare_pool(5)),
        ("group.cu", "32 * STEPS - 1", "32 * STEPS", lambda: compare_pool(5)),
        ("group.cu", "first_row + g * L", "first_row + (G - 1 - g) * L",
         lambda: compare_pool(0.3)),
        ("group.cu", "i < n ? rank_of", "i <= n ? rank_of", lambda: compare_pool(5)),
        ("group.cu", "visible_tokens(n, l, L)", "n", lambda: compare_pool(5)),
        ("group.cu", "min(first + size, S)", "first + size", lambda: compare_pool(5)),
    ],
)  # fmt: skip
def test_a_broken_kernel_of_the_library(file: str, right: str, wrong: str, compare: Any) -> None:
    """The right kernel passes the comparison, one without a barrier or off by one does not."""
    with machine.installed(Edited(file, right, right)):
        compare()
    with (
        machine.installed(Edited(file, right, wrong)),
        pytest.raises((KernelFault, AssertionError, IndexError)),
    ):
        compare()


def test_fibers_without_assembly(programs: Any, monkeypatch: Any) -> None:
    """What other processors than x86-64 use."""
    monkeypatch.setattr(machine, "OPTIONS", (*machine.OPTIONS, "-DSHIM_UCONTEXT"))
    run_reverse(programs(REVERSE, "reverse<64>"))


def test_a_file_that_does_not_compile(programs: Any) -> None:
    with pytest.raises(RuntimeError, match=r"g\+\+ on test.cu"):
        programs("__global__ void f() { nonsense(); }", "f")
