import numpy as np
import pytest
from mechanism_checks import draws

from adamas_core.lab import lolcats_fit as m
from adamas_core.lab.mechanisms import lolcats, softmax_attention


def inputs(L=30, S=50):
    q, k, v = draws(0, (2, L, 8), (2, S, 8), (2, S, 8))
    return 2 * q, k, v


def random_maps(seed):
    w_q, w_k, gamma = draws(seed, (2, 8, 6), (2, 8, 6), (2,))
    return lolcats.Maps(w_q, w_k, np.exp(gamma))


def outputs(q, k, v, maps, window):
    a = lolcats.weights(q, k, maps, window)
    return a @ v / a.sum(axis=-1, keepdims=True)


def test_the_gradient_is_that_of_finite_differences():
    given, here, way = inputs(), random_maps(1), random_maps(2)
    size = np.array([0.5, 2.0])
    target = softmax_attention.parallel(*given) / size[:, None, None] ** 0.5
    _, gradient = m.loss(here, given, target, size, 7)
    slope = sum((a * b).sum() for a, b in zip(gradient, way, strict=True))

    def at(e):
        moved = lolcats.Maps(*(a + e * b for a, b in zip(here, way, strict=True)))
        return m.loss(moved, given, target, size, 7)[0]

    assert slope == pytest.approx((at(1e-6) - at(-1e-6)) / 2e-6, rel=1e-5)


def test_the_loss_is_the_error_of_the_outputs():
    q, k, v = inputs()
    maps, full = random_maps(1), softmax_attention.parallel(q, k, v)
    size = (full**2).mean(axis=(1, 2))
    target = full / size[:, None, None] ** 0.5
    error = (outputs(q, k, v, maps, 7) - full) ** 2 / size[:, None, None]
    assert m.loss(maps, (q, k, v), target, size, 7)[0] == pytest.approx(error.mean())


def test_kl_in_plain_loops():
    q, k, _ = inputs()
    maps, expected = random_maps(1), []
    for h in range(2):
        for t in range(30):
            n = 20 + t + 1
            p = np.exp(k[h, :n] @ q[h, t] / np.sqrt(8))
            a = lolcats.weights(q, k, maps, 7)[h, t, :n]
            p, a = p / p.sum(), a / a.sum()
            expected.append((p * np.log(p / a)).sum())
    assert m.kl(maps, q, k, 7) == pytest.approx(np.mean(expected))
    assert m.kl(maps._replace(gamma=np.ones(2)), q, k, 50) == pytest.approx(0, abs=1e-12)


def test_a_fit_comes_nearer_also_on_other_queries():
    q, k, v = inputs(200, 220)
    full = softmax_attention.parallel(q, k, v)[:, 100:]

    def error(maps):
        return np.linalg.norm(outputs(q, k, v, maps, 7)[:, 100:] - full) / np.linalg.norm(full)

    fitted = m.fit(q[:, :100], k[:, :120], v[:, :120], 7, steps=40)
    assert error(fitted) < 0.8 * error(m.begin(2, 8))
