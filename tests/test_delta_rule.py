import numpy as np
import pytest
from mechanism_checks import draws, is_causal, size_is, steps_equal_parallel, unit

from adamas_core.lab.mechanisms import delta_rule as m
from adamas_core.lab.mechanisms import linear_attention
from adamas_core.lab.mechanisms.tokens import sigmoid


def inputs(L=37):
    q, k, v, alpha, beta = draws(0, (2, L, 4), (2, L, 4), (2, L, 5), (2, L), (2, L))
    return q, unit(k), v, sigmoid(alpha), sigmoid(beta)


def test_forms_agree():
    whole = m.parallel(*inputs())
    start = lambda n: m.start(*(x[:, :n] for x in inputs()[1:]))  # noqa: E731
    steps_equal_parallel(m.step, start, whole, inputs())
    for chunk in (1, 4, 16, 64):
        np.testing.assert_allclose(m.chunked(*inputs(), chunk=chunk), whole)


def test_more_tokens_than_a_chunk_of_the_prefill():
    whole = m.parallel(*inputs(150))
    start = lambda n: m.start(*(x[:, :n] for x in inputs(150)[1:]))  # noqa: E731
    steps_equal_parallel(m.step, start, whole, inputs(150))


def test_the_equation_of_the_papers():
    q, k, v, alpha, beta = inputs()
    out = m.parallel(q, k, v, alpha, beta)
    for h in range(2):
        S = np.zeros((5, 4))
        for t in range(37):
            forget = alpha[h, t] * (np.eye(4) - beta[h, t] * np.outer(k[h, t], k[h, t]))
            S = S @ forget + beta[h, t] * np.outer(v[h, t], k[h, t])
            np.testing.assert_allclose(out[h, t], S @ q[h, t])


@pytest.mark.parametrize("form", [m.parallel, m.chunked])
def test_a_gate_of_zero_forgets_all(form):
    q, k, v, alpha, beta = inputs()
    alpha[:, 20] = 0
    rest = form(*(x[:, 20:] for x in (q, k, v, alpha, beta)))
    np.testing.assert_allclose(form(q, k, v, alpha, beta)[:, 20:], rest)


def test_beta_of_zero_writes_nothing():
    q, k, v, alpha, beta = inputs()
    assert not m.parallel(q, k, v, np.ones_like(alpha), 0 * beta).any()
    state = m.start(k, v, alpha, beta)
    before = state.S
    m.step(state, q[:, 0], k[:, 0], v[:, 0], np.ones(2), np.zeros(2))
    np.testing.assert_array_equal(state.S, before)


def test_a_written_key_is_read_back():
    """With alpha = beta = 1 the state returns the newest value of a key, whatever it held."""
    _, k, v, alpha, beta = inputs()
    out = m.parallel(k, k, v, np.ones_like(alpha), np.ones_like(beta))
    np.testing.assert_allclose(out, v)


def test_orthogonal_keys_are_linear_attention():
    v, q = draws(1, (1, 4, 5), (1, 4, 4))
    k, ones = np.eye(4)[None], np.ones((1, 4))
    expected = linear_attention.parallel(q, k, v, divides=False)
    np.testing.assert_allclose(m.parallel(q, k, v, ones, ones), expected)


def test_causality():
    is_causal(lambda *x: m.chunked(*x, chunk=4), inputs(), 11)


def test_kept():
    start = lambda n: m.start(*(x[:, :n] for x in inputs()[1:]))  # noqa: E731
    size_is(start, m.step, inputs(), lambda S: m.kept(S, 2, 4, 5))
