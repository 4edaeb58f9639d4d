"""The order of sums in warp_row.cuh, to the bit. No operation's result shows each of these bits."""

from __future__ import annotations

import numpy as np
import pytest
from cuda_on_cpu.machine import Program, launch
from cuda_on_cpu.marks import BUILDS_PROGRAMS
from numpy.typing import NDArray

from adamas_core.gpu._kernels import VALUES, headers
from adamas_core.reference.rerank import lane_sums

pytestmark = BUILDS_PROGRAMS

SUMS = """
#include "warp_row.cuh"
template <int N>
__global__ void sums(const float* x, float* y) {
  const float* row = x + blockIdx.x * N * LANES;
  const float sum = lane_sums<N>([&](int j) { return row[lane_index() + LANES * j]; });
  if (threadIdx.x == 0) y[blockIdx.x] = sum;
}
"""
LONGEST = max(n for n in VALUES if n <= 8)
LOWER = "sum = __fadd_rn(sum, upper ? other : own);"
UPPER = "sum = __fadd_rn(sum, upper ? own : other);"


def summed(n: int, included: dict[str, str]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Sums of rows of 32 n numbers: of the kernel, and of the reference."""
    x = np.random.default_rng(n).standard_normal((200, 32 * n), dtype=np.float32)
    y = np.empty(len(x), np.float32)
    program = Program("test.cu", SUMS, included, [f"sums<{n}>"])
    try:
        launch(program, f"sums<{n}>", (len(x),), 32, (x, y))
    finally:
        program.close()
    return y, lane_sums(x)


@pytest.mark.parametrize("n", [1, LONGEST])
def test_lane_sums(n: int) -> None:
    got, expected = summed(n, headers())
    np.testing.assert_array_equal(got.view(np.uint32), expected.view(np.uint32))


def test_another_order_is_seen() -> None:
    """The upper half of the lanes before the lower half."""
    text = headers()["warp_row.cuh"]
    assert text.count(LOWER) == text.count(UPPER) == 1
    swapped = text.replace(LOWER, "").replace(UPPER, UPPER + LOWER)
    got, expected = summed(LONGEST, {**headers(), "warp_row.cuh": swapped})
    assert (got != expected).any()
