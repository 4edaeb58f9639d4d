import numpy as np
import pytest
from mechanism_checks import draws, is_causal, size_is, steps_equal_parallel

from adamas_core.lab.mechanisms import dsa_indexer as m
from adamas_core.lab.mechanisms import softmax_attention


def inputs():
    shapes = (4, 20, 8), (2, 20, 8), (2, 20, 8), (3, 20, 5), (1, 20, 5), (3, 20)
    return draws(0, *shapes)


@pytest.mark.parametrize("budget", [1, 6, 20, 99])
def test_forms_agree(budget):
    _, k, v, _, k_index, _ = inputs()
    whole = m.parallel(*inputs(), budget)
    start = lambda n: m.start(k[:, :n], v[:, :n], k_index[:, :n], budget)  # noqa: E731
    steps_equal_parallel(m.step, start, whole, inputs())


def test_the_equation_in_plain_loops():
    q, k, v, q_index, k_index, w = inputs()
    I = m.index(q_index, k_index, w)
    for t, s in np.ndindex(20, 20):
        each = [w[j, t] * max(q_index[j, t] @ k_index[0, s], 0) for j in range(3)]
        np.testing.assert_allclose(I[t, s], sum(each))
    out = m.parallel(*inputs(), 6)
    for h, t in np.ndindex(4, 20):
        best = np.argsort(I[t, : t + 1])[-6:]
        p = np.exp(k[h // 2, best] @ q[h, t] / np.sqrt(8))
        np.testing.assert_allclose(out[h, t], p / p.sum() @ v[h // 2, best])


def test_a_budget_of_all_tokens_is_softmax_attention():
    expected = softmax_attention.parallel(*inputs()[:3])
    np.testing.assert_allclose(m.parallel(*inputs(), 20), expected)


def test_queries_are_the_last_tokens():
    q, k, v, q_index, k_index, w = inputs()
    last = m.parallel(q[:, 15:], k, v, q_index[:, 15:], k_index, w[:, 15:], 6)
    np.testing.assert_allclose(last, m.parallel(*inputs(), 6)[:, 15:])


def test_causality():
    is_causal(lambda *x: m.parallel(*x, 6), inputs(), 11)


def test_kept():
    _, k, v, _, k_index, _ = inputs()
    start = lambda n: m.start(k[:, :n], v[:, :n], k_index[:, :n], 6)  # noqa: E731
    size_is(start, m.step, inputs(), lambda S: m.kept(S, 2, 8, 5))
