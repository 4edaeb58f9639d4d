import numpy as np
import pytest
from mechanism_checks import draws, is_causal, size_is, steps_equal_parallel

from adamas_core.lab.mechanisms import multi_token as m
from adamas_core.lab.mechanisms import softmax_attention
from adamas_core.lab.mechanisms.tokens import rms_norm


def inputs(A=3, B=5):
    return draws(0, (4, 20, 6), (2, 20, 6), (2, 20, 6), (4, A, B), (4, 4))


@pytest.mark.parametrize("A, B", [(1, 1), (3, 5), (4, 2), (25, 3)])
def test_forms_agree(A, B):
    q, k, v, theta, w = inputs(A, B)
    whole = m.parallel(q, k, v, theta, w, 0.7)
    start = lambda n: m.start(k[:, :n], v[:, :n], q[:, :n], theta)  # noqa: E731
    step = lambda *x: m.step(*x, theta, w, 0.7)  # noqa: E731
    steps_equal_parallel(step, start, whole, (q, k, v))


@pytest.mark.parametrize("A, B", [(3, 5), (4, 2)])
def test_the_convolution_in_plain_loops(A, B):
    x, theta = draws(1, (2, 6, 7), (2, A, B))
    y = m.convolved(x, theta)
    for h, t, s in np.ndindex(2, 6, 7):
        expected = 0
        for i, b in np.ndindex(A, B):
            row, column = t - i, s + B // 2 - b
            if row >= 0 and 0 <= column < 7:
                expected += theta[h, i, b] * x[h, row, column]
        np.testing.assert_allclose(y[h, t, s], expected)


def test_a_delta_kernel_is_softmax_attention():
    q, k, v, *_ = inputs()
    plain = softmax_attention.parallel(q, k, v)
    out = m.parallel(q, k, v, m.delta(4, 3, 5), np.eye(4), 0.7)
    np.testing.assert_allclose(out, 0.7 * rms_norm(plain))


def test_heads_are_mixed():
    q, k, v, *_ = inputs()
    swap = np.eye(4)[[1, 0, 3, 2]]
    plain = m.parallel(q, k, v, m.delta(4, 1, 1), np.eye(4))
    np.testing.assert_allclose(m.parallel(q, k, v, m.delta(4, 1, 1), swap), plain[[1, 0, 3, 2]])


def test_causality():
    q, k, v, theta, w = inputs()
    is_causal(lambda *x: m.parallel(*x, theta, w), (q, k, v), 11)


def test_kept():
    q, k, v, theta, w = inputs()
    start = lambda n: m.start(k[:, :n], v[:, :n], q[:, :n], theta)  # noqa: E731
    step = lambda *x: m.step(*x, theta, w)  # noqa: E731
    size_is(start, step, (q, k, v), lambda S: m.kept(S, 4, 2, 6, 3))
