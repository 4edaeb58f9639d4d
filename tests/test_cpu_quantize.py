"""Encoding in place on the CPU."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from adamas_core import cpu, reference
from adamas_core.reference.quantize import from_planes


@pytest.mark.parametrize("start", [0, 1, 7, 60, 64, 100])
@pytest.mark.parametrize("S", [1, 5, 64, 90])
def test_encode_in_place_leaves_its_neighbours(start, S):
    rng = np.random.default_rng(0)
    before = rng.integers(0, 2**64, (2, 2, 3, 4, 8, 2, 8), dtype=np.uint64)
    k = rng.standard_normal((2, 3, S, 128)).astype(np.float32)
    thresholds = np.tile(np.float32([-1, 0, 1]), (3, 1))
    planes = before.copy()
    assert cpu.encode(k, thresholds, planes, start) is planes
    rows, old = from_planes(planes), from_planes(before)
    written = slice(start, start + S)
    assert_array_equal(np.delete(rows, written, axis=-2), np.delete(old, written, axis=-2))
    expected = reference.quantize(reference.hadamard(k), thresholds)
    assert_array_equal(rows[..., written, :], expected)
