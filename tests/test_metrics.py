"""Means with intervals, the figures of the next token, and recall."""

from __future__ import annotations

import math

import numpy as np
import pytest
from lab_oracles import log_softmax

from adamas_core.lab.metrics import batch_mean, next_token, recall


def test_recall_leaves_out_what_is_no_token() -> None:
    chosen = np.array([[[0, 2, 4, -1], [1, 2, -1, -1]]], np.int32)
    oracle = np.array([[[0, 3, 4], [2, -1, -1]]], np.int32)  # the second sees fewer than 3
    np.testing.assert_allclose(recall(chosen, oracle, 5), [[2 / 3, 1]])


def test_the_mean_over_batches_of_neighbors() -> None:
    x = np.repeat(np.arange(16.0), 3)  # as correlated as can be: three equal neighbors
    mean = batch_mean(x)
    assert mean.value == pytest.approx(7.5)
    assert mean.half == pytest.approx(2.131 * math.sqrt(np.var(np.arange(16), ddof=1) / 16))
    assert batch_mean(np.ones(40)).half == 0
    with pytest.raises(ValueError, match="15 positions; expected at least 16, for an interval"):
        batch_mean(np.ones(15))


def test_next_token() -> None:
    rng = np.random.default_rng(3)
    full, sparse = rng.standard_normal((2, 5, 11)).astype(np.float32)
    true = rng.integers(0, 11, 5)
    found = next_token(full, sparse, true)
    for i in range(5):
        p, other = log_softmax(full[i]), log_softmax(sparse[i])
        assert found.kl[i] == pytest.approx((np.exp(p) * (p - other)).sum())
        assert found.loss[i] == pytest.approx(-other[true[i]])
        assert found.agrees[i] == (full[i].argmax() == sparse[i].argmax())
