"""Selection on the CPU: masks, and candidates that are collected chunk by chunk."""

from __future__ import annotations

import numba
import numpy as np
import pytest
from numpy.testing import assert_array_equal

from adamas_core import Selection, cpu, reference
from adamas_core.cpu._array import address_of
from adamas_core.cpu.kernels import _simd
from adamas_core.cpu.kernels.topk import (
    INVISIBLE,
    MASK_BITS,
    append_newest,
    keep_nearest,
    lowest_bit,
    mask_at_most,
)


@numba.njit
def _masks(x, bound, n):
    count = 0
    for i in range(0, n, 64):
        count += _simd.count_bits(mask_at_most(x + 2 * i, bound))
    return count, lowest_bit(mask_at_most(x, bound))


@pytest.mark.parametrize("bound", [0, 1, 32767, 32768, 65534, 65535])
def test_masks_compare_unsigned(bound):
    x = np.random.default_rng(0).integers(0, 65536, 640).astype(np.uint16)
    x[0] = 65535
    count, first = _masks(address_of(x), bound, len(x))
    assert count == (x <= bound).sum()
    assert first == (np.flatnonzero(x[:64] <= bound)[0] if (x[:64] <= bound).any() else 64)


N = 12 * 1024 + 77
ORDERS = {
    "all equal": np.zeros(N, int),
    "ascending": np.arange(N) // 2,
    "descending": np.arange(N)[::-1] // 2,
    "staircase": np.arange(N) // 500,
    "staircase down": np.arange(N)[::-1] // 500,
    "two values": np.arange(N) % 2,
    "a good token now and then": np.where(np.arange(N) % 4096 == 5, 0, 9),
    "near the largest": 65534 - np.arange(N) % 3,
    "random": np.random.default_rng(0).integers(0, 300, N),
}


@numba.njit
def _newest_first(distances, n, chunk, k, room, indices, ranks):
    """Chunks from the newest to the oldest, each with the bound of the chunks before it."""
    count, bound = 0, INVISIBLE - 1
    for first in range((n - 1) // chunk * chunk, -1, -chunk):
        end = min(first + chunk, n)
        at = distances + 2 * first
        count, bound = append_newest(at, first, end, bound, first, indices, ranks, count, room, k)
    if count > k:
        keep_nearest(indices, ranks, count, k, INVISIBLE - 1)
        count = k
    return count


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("k", [1, 63, 64, 128, 1000, N - 1, N])
@pytest.mark.parametrize("chunk", [64, 4096])
def test_running_selection_is_exact(order, k, chunk):
    distances = ORDERS[order].astype(np.uint16)
    padded = np.zeros(-(-N // MASK_BITS) * MASK_BITS, np.uint16)  # nothing after the end is taken
    padded[:N] = distances
    room = -(-(k + 448) // MASK_BITS) * MASK_BITS
    indices, ranks = np.empty(room, np.int32), np.empty(room, np.uint16)
    at = address_of(padded), N, chunk, k, room, address_of(indices), address_of(ranks)
    count = _newest_first(*at)
    expected = reference.topk(distances, k, Selection())
    assert_array_equal(indices[:count], expected[::-1])
    assert_array_equal(ranks[:count], distances[expected][::-1])
    assert_array_equal(cpu.topk(distances, k, Selection()), expected)
