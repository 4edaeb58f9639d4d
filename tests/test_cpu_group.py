"""The attention of a group of query heads on the CPU, to the bit."""

from __future__ import annotations

import numba
import numpy as np
import pytest
from numpy.testing import assert_array_equal

from adamas_core.cpu._array import address_of
from adamas_core.cpu.kernels import group
from adamas_core.cpu.kernels._scratch import TERMS_BYTES
from adamas_core.reference import group as reference_group
from adamas_core.reference.estimate import rank


@numba.njit
def _pooled(levels, stride, terms, heads, visible, ranks):
    for g in range(heads):
        group._add_up(levels + stride * g, visible, terms + TERMS_BYTES * g)
    for tile in range(0, visible, 64):
        group._rank_tile(levels + 2 * tile, stride, terms, heads, ranks + 4 * tile)


@pytest.mark.parametrize("spread", [0, 3, 40, 60_000])
@pytest.mark.parametrize("visible", [1, 63, 64, 65, 200])
def test_attention_of_a_group_to_the_bit(spread, visible):
    """Selections seldom show a wrong sum, or heads that are added in another order."""
    rng = np.random.default_rng(spread + visible)
    levels = rng.integers(-spread // 2, spread // 2 + 1, (1, 5, 1, 256)).astype(np.int16)
    terms, ranks = np.zeros((5, TERMS_BYTES), np.uint8), np.zeros(256, np.uint32)
    _pooled(address_of(levels), 2 * 256, address_of(terms), 5, visible, address_of(ranks))
    seen = np.broadcast_to(np.arange(256) < visible, levels.shape)
    attention = reference_group.attention(levels.astype(np.int64), seen, 5)
    nothing = np.zeros(attention.shape, np.uint16)
    assert_array_equal(ranks[:visible], rank(attention, nothing)[0, 0, 0, :visible])
