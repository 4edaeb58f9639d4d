import numpy as np
import pytest
from mechanism_checks import draws, is_causal, size_is, steps_equal_parallel

from adamas_core.lab.mechanisms import linear_attention
from adamas_core.lab.mechanisms import log_linear as m


def inputs(L=37):
    q, k, v, weight = draws(0, (2, L, 4), (2, L, 4), (2, L, 5), (2, L, 7))
    return linear_attention.phi(q), linear_attention.phi(k), v, np.abs(weight)


def segments(t):
    """The level of each token before t, from the Fenwick tree's own rule."""
    level, end = np.empty(t, int), t
    while end:
        size = end & -end  # the lowest bit that is 1
        level[end - size : end] = size.bit_length()
        end -= size
    return level


def test_levels_are_the_segments_of_a_fenwick_tree():
    for t in range(70):
        np.testing.assert_array_equal(m.levels(np.array(t), np.arange(t)), segments(t))
        assert m.levels(np.array(t), np.array(t)) == 0


@pytest.mark.parametrize("divides", [True, False])
def test_forms_agree(divides):
    q, k, v, weight = inputs()
    whole = m.parallel(q, k, v, weight, divides)
    start = lambda n: m.start(k[:, :n], v[:, :n], divides)  # noqa: E731
    steps_equal_parallel(m.step, start, whole, (q, k, v, weight))
    for chunk in (1, 2, 8, 64):
        np.testing.assert_allclose(m.chunked(q, k, v, weight, divides, chunk), whole)


def test_the_equation_in_plain_loops():
    q, k, v, weight = inputs()
    out = m.parallel(q, k, v, weight)
    for h, t in np.ndindex(2, 37):
        level = [*segments(t), 0]
        a = [weight[h, t, level[s]] * (q[h, t] @ k[h, s]) for s in range(t + 1)]
        np.testing.assert_allclose(out[h, t], np.array(a) @ v[h, : t + 1] / sum(a))


@pytest.mark.parametrize("divides", [True, False])
def test_equal_weights_are_linear_attention(divides):
    q, k, v, weight = inputs()
    ones = np.ones_like(weight)
    expected = linear_attention.parallel(q, k, v, divides=divides)
    np.testing.assert_allclose(m.parallel(q, k, v, ones, divides), expected)
    np.testing.assert_allclose(m.chunked(q, k, v, ones, divides, 8), expected)


def test_causality():
    is_causal(lambda *x: m.chunked(*map(abs, x), chunk=4), inputs(), 11)


def test_kept():
    q, k, v, weight = inputs()
    start = lambda n: m.start(k[:, :n], v[:, :n])  # noqa: E731
    size_is(start, m.step, (q, k, v, weight), lambda S: m.kept(S, 2, 4, 5))


def test_a_chunk_is_a_power_of_two():
    with pytest.raises(ValueError, match="chunk=6; expected a power of two"):
        m.chunked(*inputs(), chunk=6)
