"""A prefix in the cache, and sparse attention after it."""

from __future__ import annotations

import numpy as np
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
        prefix.cache.truncate(40)
        attention = prefix.sparse(fitted, budget, dense_layers)
        return model.forward(tokens[40:], 40, attention, last=False)

    np.testing.assert_allclose(block(44), full, atol=1e-4)
    np.testing.assert_allclose(block(2, dense_layers=2), full, atol=1e-4)
    assert abs(block(2) - full).max() > 0.01
