"""Indices that the CPU's kernels refuse, and more forced tokens than places."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from adamas_core import Selection, cpu


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
