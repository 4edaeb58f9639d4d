import numpy as np
from mechanism_checks import draws, is_causal, size_is, steps_equal_parallel, unit

from adamas_core.lab.mechanisms import delta_rule
from adamas_core.lab.mechanisms import kimi_delta as m
from adamas_core.lab.mechanisms.tokens import sigmoid


def inputs(L=37):
    q, k, v, alpha, beta = draws(0, (2, L, 4), (2, L, 4), (2, L, 5), (2, L, 4), (2, L))
    return q, unit(k), v, sigmoid(alpha), sigmoid(beta)


def test_forms_agree():
    whole = m.parallel(*inputs())
    start = lambda n: m.start(*(x[:, :n] for x in inputs()[1:]))  # noqa: E731
    steps_equal_parallel(m.step, start, whole, inputs())
    for chunk in (1, 4, 16, 64):
        np.testing.assert_allclose(m.chunked(*inputs(), chunk=chunk), whole)


def test_the_equation_of_the_paper():
    q, k, v, alpha, beta = inputs()
    out = m.parallel(q, k, v, alpha, beta)
    for h in range(2):
        S = np.zeros((4, 5))
        for t in range(37):
            forget = np.eye(4) - beta[h, t] * np.outer(k[h, t], k[h, t])
            S = forget @ np.diag(alpha[h, t]) @ S + beta[h, t] * np.outer(k[h, t], v[h, t])
            np.testing.assert_allclose(out[h, t], q[h, t] @ S)


def test_equal_channels_are_the_gated_delta_rule():
    q, k, v, alpha, beta = inputs()
    equal = np.repeat(alpha[..., :1], 4, axis=-1)
    expected = delta_rule.parallel(q, k, v, alpha[..., 0], beta)
    np.testing.assert_allclose(m.parallel(q, k, v, equal, beta), expected)
    np.testing.assert_allclose(m.chunked(q, k, v, equal, beta, 8), expected)


def test_channels_with_a_gate_of_zero_forget():
    q, k, v, alpha, beta = inputs()
    alpha[:, 20] = 0
    rest = m.chunked(*(x[:, 20:] for x in (q, k, v, alpha, beta)))
    np.testing.assert_allclose(m.chunked(q, k, v, alpha, beta)[:, 20:], rest)


def test_causality():
    is_causal(lambda *x: m.chunked(*x, chunk=4), inputs(), 11)


def test_kept():
    start = lambda n: m.start(*(x[:, :n] for x in inputs()[1:]))  # noqa: E731
    size_is(start, m.step, inputs(), lambda S: m.kept(S, 2, 4, 5))
