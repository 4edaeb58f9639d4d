"""The fused step on the CPU, divided among threads."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numba
import numpy as np
import pytest
from numpy.testing import assert_array_equal

from adamas_core import Selection, cpu, reference
from adamas_core.cpu.kernels._scratch import CHUNK, ROWS
from adamas_core.reference.layout import Centers, Codes


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(
    "B, H_kv, G, L, P",
    [(1, 1, 1, 1, 1), (1, 1, 3, 2, 2), (1, 3, 2, 1, 3), (2, 1, ROWS + 1, 3, 1), (3, 1, 4, 1, 2)],
)
@pytest.mark.parametrize(
    "options, centered",
    [
        ({}, False),
        ({"refine": 2}, False),
        ({}, True),
        ({"refine": 2}, True),
        ({"group": True}, True),
    ],
)
def test_fused_selection_split_over_threads(threads, B, H_kv, G, L, P, options, centered):
    """Parts of heads, merged; heads that no number of threads divides; ragged lengths."""
    rng = np.random.default_rng(7)
    S = 2 * CHUNK + 100
    planes = rng.integers(0, 2**64, (2, B, H_kv, -(-S // 64), 8, P, 8), dtype=np.uint64)
    if P == 3:  # the words of a head_dim of 192 lie in a transform of 256, which has four
        planes = np.concatenate([planes, np.zeros_like(planes[..., :1, :])], axis=-2)
    thresholds = np.tile(np.float32([-1, 0, 1]), (H_kv, 1))
    length = S if B == 1 else np.array([S, 5, CHUNK + 1][:B])
    T, P = planes.shape[3], planes.shape[5]
    centers = Centers(
        rng.standard_normal((B, H_kv, T, 64 * P)).astype(np.float16),
        rng.integers(100, 150, (B, H_kv, T, 64), dtype=np.uint8),
        np.zeros((B, H_kv, 64, 64 * P), np.float32),
    )
    codes = Codes(planes, length, thresholds, centers if centered else None)
    q = rng.standard_normal((B, H_kv * G, L, 64 * P)).astype(np.float32)
    k = None
    if options.get("refine"):  # all heads share the keys, which saves memory
        k = rng.standard_normal((1, 1, S, 64 * P), np.float32).astype(np.float16)
        k = np.broadcast_to(k, (B, H_kv, S, 64 * P))
    arguments = q, codes, 50, Selection(sinks=3, recent=4, **options), k
    expected = reference.select_topk(*arguments)
    before = numba.get_num_threads()
    try:
        numba.set_num_threads(min(threads, before))
        assert_array_equal(cpu.select_topk(*arguments), expected)
        assert numba.get_num_threads() == min(threads, before)
    finally:
        numba.set_num_threads(before)


def test_several_python_threads_at_once():
    """Calls of different sizes from four threads give what each gives alone."""
    rng = np.random.default_rng(3)
    selection = Selection()
    cases = []
    for S, H_kv in (300, 2), (20_000, 1), (5_000, 3), (70_000, 1):
        k = rng.standard_normal((1, H_kv, S, 64)).astype(np.float32)
        q = rng.standard_normal((1, 4 * H_kv, 1, 64)).astype(np.float32)
        thresholds = np.tile(np.float32([-0.9816, 0, 0.9816]), (H_kv, 1))
        codes = Codes(cpu.encode(k, thresholds), S, thresholds)
        cases.append((q, k, k, codes, reference.select_topk(q, codes, 70, selection)))

    def work(case):
        q, k, v, codes, expected = case
        alone = cpu.attend(q, k, v, expected, None, True)
        for _ in range(30):
            assert_array_equal(cpu.select_topk(q, codes, 70, selection), expected)
            found = cpu.attend_topk(q, k, v, codes, 70, selection)
            for x, y in zip(found, alone, strict=True):
                assert_array_equal(x, y)
        return True

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(work, cases))
