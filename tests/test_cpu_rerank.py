"""Indices that the CPU's kernels refuse, and more forced tokens than places."""

from __future__ import annotations

import numba
import numpy as np
import pytest
from numpy.testing import assert_array_equal

from adamas_core import Selection, cpu
from adamas_core.cpu.kernels.rerank import LAST_RANK, MASK_RANKS, keep_best


def test_index_out_of_range_names_it():
    x = np.zeros((1, 1, 5, 8), np.float32)
    indices = np.int32([[[[0, 5]]]])
    with pytest.raises(IndexError, match=r"attend: indices hold 5; expected < 5"):
        cpu.attend(x[:, :, :1], x, x, indices)
    with pytest.raises(IndexError, match=r"rerank: indices hold 5; expected < 5"):
        cpu.rerank(x[:, :, :1], x, indices, 1, Selection())


def test_more_forced_tokens_than_places_stay_inside_the_result():
    x = np.zeros((1, 1, 9, 8), np.float32)
    indices = np.arange(9, dtype=np.int32).reshape(1, 1, 1, 9)
    found = cpu.rerank(x[:, :, :1], x, indices, 4, Selection(sinks=3, recent=3))
    assert_array_equal(found[0, 0, 0], [2, 6, 7, 8])  # the newest of the forced


@numba.njit
def _keep(tokens, ranks, n, places):
    return keep_best(tokens.ctypes.data, ranks.ctypes.data, n, places)


@pytest.mark.parametrize("largest", [0, 2, 50, LAST_RANK])
def test_the_best_are_kept_in_their_order(largest):
    """Few different ranks have ties, of which the first ones in the list are kept."""
    rng = np.random.default_rng(largest)
    for _ in range(300):
        n = int(rng.integers(1, 300))
        places = int(rng.integers(0, n + 3))
        tokens = np.arange(n + MASK_RANKS, dtype=np.int32)[::-1].copy()
        ranks = rng.integers(0, largest + 1, n + MASK_RANKS, dtype=np.uint64).astype(np.uint32)
        order = np.argsort(ranks[:n], kind="stable")
        best = np.sort(order[:places])
        own, own_ranks = tokens.copy(), ranks.copy()
        count, bound = _keep(own, own_ranks, n, places)
        assert count == len(best)
        assert_array_equal(own[:count], tokens[best])
        assert_array_equal(own_ranks[:count], ranks[best])
        if places < n:
            assert bound == ranks[best].max(initial=0)
