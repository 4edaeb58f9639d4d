import numpy as np
import pytest
from mechanism_checks import draws, is_causal, steps_equal_parallel

from adamas_core.lab.mechanisms import flash_tiles as m
from adamas_core.lab.mechanisms import softmax_attention


@pytest.mark.parametrize("chunk", [1, 3, 16, 64])
@pytest.mark.parametrize("L", [1, 7, 40])
def test_tiles_equal_softmax_attention(chunk, L):
    q, k, v = draws(0, (4, L, 8), (2, 40, 8), (2, 40, 6))
    expected = softmax_attention.parallel(q, k, v)
    np.testing.assert_allclose(m.chunked(q, k, v, chunk), expected, rtol=1e-12, atol=1e-12)


def test_steps():
    q, k, v = draws(0, (4, 80, 8), (2, 80, 8), (2, 80, 8))
    start = lambda n: m.start(k[:, :n], v[:, :n])  # noqa: E731
    steps_equal_parallel(m.step, start, m.parallel(q, k, v), (q, k, v))


def test_causality():
    is_causal(lambda *x: m.chunked(*x, chunk=4), draws(0, (4, 20, 8), (2, 20, 8), (2, 20, 8)), 11)


def test_large_logits_stay_finite():
    q, k, v = draws(0, (1, 30, 8), (1, 30, 8), (1, 30, 8))
    out = m.chunked(1000 * q, 1000 * k, v, chunk=4)
    np.testing.assert_allclose(out, softmax_attention.parallel(1000 * q, 1000 * k, v))
