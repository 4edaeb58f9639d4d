import numpy as np
import pytest
from mechanism_checks import draws, is_causal, size_is, steps_equal_parallel

from adamas_core import attend
from adamas_core.lab.mechanisms import softmax_attention as m

KV_HEADS = pytest.mark.parametrize("H_kv", [4, 2, 1])  # MHA, GQA, MQA


@KV_HEADS
def test_forms_agree(H_kv):
    q, k, v = draws(0, (4, 20, 8), (H_kv, 20, 8), (H_kv, 20, 6))
    whole = m.parallel(q, k, v)
    steps_equal_parallel(m.step, lambda n: m.start(k[:, :n], v[:, :n]), whole, (q, k, v))
    np.testing.assert_allclose(m.parallel(q[:, 15:], k, v), whole[:, 15:])


@KV_HEADS
def test_equals_the_library(H_kv):
    q, k, v = draws(1, (4, 5, 16), (H_kv, 70, 16), (H_kv, 70, 16))
    library = attend(*(x.astype(np.float32) for x in (q, k, v)), None)
    np.testing.assert_allclose(m.parallel(q, k, v), library, atol=3e-6)


def test_causality():
    is_causal(m.parallel, draws(0, (4, 20, 8), (2, 20, 8), (2, 20, 8)), 11)


def test_a_mask_and_a_scale():
    q, k, v = draws(0, (1, 1, 4), (1, 3, 4), (1, 3, 4))
    only = m.parallel(q, k, v, np.array([[False, True, False]]))
    np.testing.assert_allclose(only, v[:, 1:2])
    np.testing.assert_allclose(m.parallel(2 * q, k, v), m.parallel(q, k, v, scale=1.0))


def test_kept():
    q, k, v = draws(0, (4, 12, 8), (2, 12, 8), (2, 12, 8))
    start = lambda n: m.start(k[:, :n], v[:, :n])  # noqa: E731
    size_is(start, m.step, (q, k, v), lambda S: m.kept(S, 2, 8))
