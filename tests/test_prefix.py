"""A prefix in the cache, and sparse attention after it."""

from __future__ import annotations

import numpy as np
import pytest
from tiny_model import DenseAttention, tiny

from adamas_core.lab.prefix import Prefix
from adamas_core.lab.selectors import SELECTORS


def test_a_prefix_is_read_densely() -> None:
    tokens = np.random.default_rng(0).integers(0, 50, 40).tolist()
    model, dense, moves = tiny(seed=3), DenseAttention(), []
    prefix = Prefix(model, tokens, 4, lambda *move: moves.append(move))
    model.forward(tokens, 0, dense)
    assert moves == [(40, 40)]
    assert prefix.length == 40
    for layer in range(2):
        k, v = prefix.keys_values(layer)
        np.testing.assert_allclose(k, dense.k[layer], rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(v, dense.v[layer], rtol=1e-5, atol=1e-6)
        assert prefix.q[layer].shape == (4, 40, 6)


def test_sparse_attention_after_it() -> None:
    """All tokens chosen, or dense layers, are full attention; few tokens are not."""
    tokens = np.random.default_rng(1).integers(0, 50, 44).tolist()
    model, dense = tiny(seed=3), DenseAttention()
    full = model.forward(tokens, 0, dense, last=False)[40:]
    prefix = Prefix(model, tokens[:40], 4)
    fitted = prefix.fit(SELECTORS["adamas"])

    def block(budget: int, dense_layers: int = 0) -> np.ndarray:
        prefix.rewind()
        attention = prefix.sparse(fitted, budget, dense_layers)
        return model.forward(tokens[40:], 40, attention, last=False)

    np.testing.assert_allclose(block(44), full, atol=1e-4)
    np.testing.assert_allclose(block(2, dense_layers=2), full, atol=1e-4)
    assert abs(block(2) - full).max() > 0.01


def test_layers_with_a_window_see_it_whole() -> None:
    """They are dense, have no place among the figures, and are rewound."""
    tokens = np.random.default_rng(1).integers(0, 50, 48).tolist()
    windows = (7, None)
    model, dense = tiny(seed=3, windows=windows), DenseAttention(windows)
    full = model.forward(tokens, 0, dense, last=False)[40:]
    moved = Prefix(model, tokens[:40], 8)
    assert moved.layers == (1,)
    assert len(moved.q) == len(moved.cache) == 1
    np.testing.assert_allclose(moved.keys_values(0)[0], dense.k[1][:, :40], rtol=1e-4, atol=1e-5)
    fitted = moved.fit(SELECTORS["adamas"])
    for _ in range(2):
        moved.rewind()
        sparse = moved.sparse(fitted, 48)
        parts = [model.forward(tokens[40:43], 40, moved.dense, last=False)]
        parts.append(model.forward(tokens[43:], 43, sparse, last=False))
        np.testing.assert_allclose(np.concatenate(parts), full, atol=1e-4)


def test_a_model_of_windows_alone_is_refused() -> None:
    with pytest.raises(ValueError, match="every layer of the model has a window"):
        Prefix(tiny(windows=(7, 7)), [1, 2, 3], 1)
