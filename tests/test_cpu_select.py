"""The fused search on the CPU at the sizes where it changes its ways."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from adamas_core import Selection, cpu, reference
from adamas_core.cpu.kernels._scratch import CHUNK
from adamas_core.cpu.kernels.select import SAMPLE
from adamas_core.reference.layout import Codes
from adamas_core.reference.quantize import to_planes

SIZES = [
    64,
    4 * SAMPLE - 1,
    4 * SAMPLE,
    4 * SAMPLE + 65,
    CHUNK - 1,
    CHUNK,
    CHUNK + 1,
    3 * CHUNK + 9,
]


def _planes_with_distances(distances):
    """Codes at D = 32 whose Manhattan distance to a query of zeros (code 0) is as wanted, <= 32."""
    S = len(distances)
    low = np.array([(1 << int(d)) - 1 for d in distances], np.uint64)
    codes = np.stack([np.zeros(S, np.uint64), low], axis=-1)
    return to_planes(codes)[:, None, None]


@pytest.mark.parametrize("order", ["all equal", "ascending", "descending", "two values"])
@pytest.mark.parametrize("S", SIZES)
def test_fused_selection_at_the_sizes_where_it_changes(order, S):
    """Where a sample begins to pay, and where chunks end."""
    distances = np.sort(np.random.default_rng(S).integers(0, 33, S))
    distances = {
        "all equal": np.full(S, 7),
        "ascending": distances,
        "descending": distances[::-1],
        "two values": np.arange(S) % 2,
    }[order]
    thresholds = np.ones((1, 3), np.float32)  # a query of zeros has code 0
    codes = Codes(_planes_with_distances(distances), S, thresholds)
    q = np.zeros((1, 1, 1, 32), np.float32)
    for k in 1, 64, S // 2, S - 1, S:
        expected = reference.topk(distances.astype(np.uint16), k, Selection())
        found = cpu.select_topk(q, codes, k, Selection(metric="manhattan"))
        assert_array_equal(found[0, 0, 0], expected)
