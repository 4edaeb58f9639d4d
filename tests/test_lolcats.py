import numpy as np
import pytest
from mechanism_checks import draws, is_causal, size_is, steps_equal_parallel

from adamas_core.lab.mechanisms import lolcats as m
from adamas_core.lab.mechanisms import softmax_attention


def inputs(L=25):
    q, k, v, w_q, w_k = draws(0, (3, L, 4), (3, L, 4), (3, L, 4), (3, 4, 5), (3, 4, 5))
    return q, k, v, m.Maps(w_q, w_k, np.array([0.5, 1.0, 2.0]))


@pytest.mark.parametrize("window", [1, 2, 6, 25, 99])
def test_forms_agree(window):
    q, k, v, maps = inputs()
    whole = m.parallel(q, k, v, maps, window)
    start = lambda n: m.start(k[:, :n], v[:, :n], maps, window)  # noqa: E731
    steps_equal_parallel(m.step, start, whole, (q, k, v))


def test_the_equation_in_plain_loops():
    q, k, v, maps = inputs()
    out = m.parallel(q, k, v, maps, 6)

    def feature(x, w):
        halves = [np.exp(x @ w) / np.exp(x @ w).sum(), np.exp(-x @ w) / np.exp(-x @ w).sum()]
        return np.concatenate(halves)

    for h, t in np.ndindex(3, 25):
        a = np.empty(t + 1)
        for s in range(t + 1):
            if t - s < 6:
                a[s] = maps.gamma[h] * np.exp(q[h, t] @ k[h, s] / 2)
            else:
                a[s] = feature(q[h, t], maps.w_q[h]) @ feature(k[h, s], maps.w_k[h])
        np.testing.assert_allclose(out[h, t], a @ v[h, : t + 1] / a.sum())


def test_a_window_of_all_tokens_is_softmax_attention():
    q, k, v, maps = inputs()
    expected = softmax_attention.parallel(q, k, v)
    np.testing.assert_allclose(m.parallel(q, k, v, maps, 25), expected)


def test_causality():
    q, k, v, maps = inputs()
    is_causal(lambda *x: m.parallel(*x, maps, 6), (q, k, v), 11)


def test_kept():
    q, k, v, maps = inputs()
    start = lambda n: m.start(k[:, :n], v[:, :n], maps, 6)  # noqa: E731
    size_is(start, m.step, (q, k, v), lambda S: m.kept(S, 3, 4, 10, 6))
