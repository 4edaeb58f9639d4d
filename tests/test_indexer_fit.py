import numpy as np
import pytest
from mechanism_checks import draws

from adamas_core.lab import indexer_fit as m
from adamas_core.lab.mechanisms.dsa_indexer import index
from adamas_core.lab.mechanisms.tokens import causal


def inputs(L=30, S=50):
    q, k = draws(0, (4, L, 16), (2, S, 16))
    return 3 * q, k


def random_indexer(seed, width=16):
    shapes = (m.H_I, 4 * width, m.D_I), (2 * width, m.D_I), (4 * width, m.H_I), (m.H_I,)
    return m.Indexer(*(x / 5 for x in draws(seed, *shapes)))


def test_the_gradient_is_that_of_finite_differences():
    q, k = inputs()
    p, x, y = m.mean_attention(q, k), m.flat(q), m.flat(k)
    here, way = random_indexer(1), random_indexer(2)
    _, gradient = m.loss(here, x, y, p)
    slope = sum((a * b).sum() for a, b in zip(gradient, way, strict=True))

    def at(e):
        moved = m.Indexer(*(a + e * b for a, b in zip(here, way, strict=True)))
        return m.loss(moved, x, y, p)[0]

    assert slope == pytest.approx((at(1e-6) - at(-1e-6)) / 2e-6, rel=1e-5)


def test_the_loss_is_the_mean_divergence():
    q, k = inputs()
    here = m.Indexer(*(part / 3 for part in random_indexer(1)))
    p, I = m.mean_attention(q, k), index(*here.inputs(q, k))
    expected = 0.0
    for t in range(30):
        n = 20 + t + 1
        other = np.exp(I[t, :n]) / np.exp(I[t, :n]).sum()
        expected += (p[t, :n] * np.log(p[t, :n] / other)).sum() / 30
    assert m.loss(here, m.flat(q), m.flat(k), p)[0] == pytest.approx(expected)
    assert m.kl(here, q, k) == pytest.approx(expected)
    assert m.divergence(p, np.log(np.maximum(p, 1e-300)), causal(30, 50))[0] == pytest.approx(0)


def test_a_fit_comes_nearer_also_on_other_queries():
    shared, *_ = draws(3, (32, 8))
    q, k = inputs(120, 150)
    k = np.stack(np.split(m.flat(k) @ shared @ shared.T / 8, 2, axis=-1))  # keys of 8 directions
    before = m.kl(m.untrained(4, 2, 16), q[:, 60:], k)
    fitted = m.fit(q[:, :60], k[:, :90], steps=40)
    assert m.kl(fitted, q[:, 60:], k) < 0.5 * before


def test_untrained_is_an_estimate_of_the_mean_logit():
    """With one KV head and equal queries of all heads, I is near q.k, where that is above 0."""
    (q, k) = draws(4, (1, 40, 64), (1, 40, 64))
    I = index(*m.untrained(4, 1, 64).inputs(np.repeat(q, 4, axis=0), k))
    exact = np.maximum(q[0] @ k[0].T, 0)
    assert np.corrcoef(I.ravel(), exact.ravel())[0, 1] > 0.5


def test_without_scipy(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "scipy.optimize", None)
    with pytest.raises(
        ImportError, match=r'SciPy is missing: pip install "adamas-core\[compare\]"'
    ):
        m.minimizer()
