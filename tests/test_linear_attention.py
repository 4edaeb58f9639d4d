import numpy as np
import pytest
from mechanism_checks import draws, is_causal, size_is, steps_equal_parallel

from adamas_core.lab.mechanisms import linear_attention as m

CASES = pytest.mark.parametrize("decay, divides", [(False, True), (True, True), (True, False)])


def features(decay):
    q, k, v = draws(0, (3, 25, 4), (3, 25, 4), (3, 25, 5))
    return m.phi(q), m.phi(k), v, np.array([0.5, 0.9, 1.0]) if decay else None


@CASES
def test_forms_agree(decay, divides):
    q, k, v, gamma = features(decay)
    whole = m.parallel(q, k, v, gamma, divides)
    start = lambda n: m.start(k[:, :n], v[:, :n], gamma, divides)  # noqa: E731
    steps_equal_parallel(m.step, start, whole, (q, k, v))
    for chunk in (1, 4, 25, 64):
        np.testing.assert_allclose(m.chunked(q, k, v, gamma, divides, chunk), whole)


@CASES
def test_the_state_after_a_prefill_is_that_of_steps(decay, divides):
    q, k, v, gamma = features(decay)
    state = m.start(k[:, :0], v[:, :0], gamma, divides)
    for t in range(25):
        m.step(state, q[:, t], k[:, t], v[:, t])
    prefill = m.start(k, v, gamma, divides)
    np.testing.assert_allclose(state.S, prefill.S)
    np.testing.assert_allclose(state.z, prefill.z)


def test_the_equation_in_plain_loops():
    q, k, v, gamma = features(True)
    out = m.parallel(q, k, v, gamma)
    for h, t in np.ndindex(3, 25):
        a = [gamma[h] ** (t - s) * (q[h, t] @ k[h, s]) for s in range(t + 1)]
        np.testing.assert_allclose(out[h, t], np.array(a) @ v[h, : t + 1] / sum(a))


def test_causality():
    q, k, v, _ = features(False)
    is_causal(lambda *x: m.chunked(*map(abs, x), chunk=4), (q, k, v), 11)


def test_phi_is_elu_plus_one():
    np.testing.assert_allclose(m.phi(np.array([-1.0, 0.0, 2.0])), [np.exp(-1), 1, 3])


def test_kept():
    q, k, v, _ = features(False)
    start = lambda n: m.start(k[:, :n], v[:, :n])  # noqa: E731
    size_is(start, m.step, (q, k, v), lambda S: m.kept(S, 3, 4, 5))
