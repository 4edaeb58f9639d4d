"""Scores on the CPU: specialised loops and look-ups against the generic loops."""

from __future__ import annotations

import numba
import numpy as np
import pytest
from numpy.testing import assert_array_equal

from adamas_core.cpu._array import address_of
from adamas_core.cpu.kernels._jit import invoke
from adamas_core.cpu.kernels._popcount import manhattan_tile, weighted_tile
from adamas_core.cpu.kernels.score import add_tables, query_bytes, score_tile, table_bytes


@numba.njit
def _generic(high, low, query, P, weights, distances):
    """Popcounts, with P and the number of weights known only at run time."""
    if weights == 0:
        manhattan_tile(high, low, query, P, distances)
    else:
        weighted_tile(high, low, query, P, weights, distances)


@numba.njit
def _score_tile(at, arguments):
    return invoke(at, arguments)


@numba.njit
def _add_tables(query, P, weights):
    add_tables(query, P, weights)


def _on_a_line(size):
    """Zeroed bytes that begin on a cache line, as kernels' scratch does."""
    room = np.zeros(size + 64, np.uint8)
    return room[-address_of(room) % 64 :][:size]


@pytest.mark.parametrize("extremes", [False, True])
@pytest.mark.parametrize("P", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("weights", [0, 1, 2, 3, 7])
def test_specialised_scores_are_the_generic_ones(P, weights, extremes):
    rng = np.random.default_rng(P)
    rows, width = 3, max(weights + 1, 2) * P
    keys = rng.integers(0, 2**64, (2, 8, P, 8), dtype=np.uint64)
    queries = rng.integers(0, 2**64, (rows, width), dtype=np.uint64)
    if extremes:  # the largest sums: all weights at their maximum, every bit the other sign's
        keys[...] = 2**64 - 1
        queries[...] = 2**64 - 1
        queries[:, :P] = 0
    own_bytes = query_bytes.py_func(P, weights)
    prepared = _on_a_line(rows * own_bytes).reshape(rows, own_bytes)
    for words, own in zip(queries, prepared, strict=True):
        own[table_bytes.py_func(P, weights) :][: 8 * width] = words.view(np.uint8)
        _add_tables(address_of(own), P, weights)
    fast, generic = np.zeros((2, rows, 100), np.uint16)
    planes = address_of(keys[0]), address_of(keys[1])
    given = (*planes, address_of(prepared), rows, P, weights, address_of(fast), 200)
    _score_tile(score_tile.address, given)
    for words, distances in zip(queries, generic, strict=True):
        _generic(*planes, address_of(words), P, weights, address_of(distances))
    assert generic[:, :64].any()
    assert_array_equal(fast, generic)
