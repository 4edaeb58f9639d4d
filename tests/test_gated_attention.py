import numpy as np
from mechanism_checks import draws, is_causal, steps_equal_parallel

from adamas_core import attend, encode, select_topk
from adamas_core.lab.mechanisms import gated_attention as m
from adamas_core.lab.mechanisms import softmax_attention
from adamas_core.lab.mechanisms.tokens import sigmoid
from adamas_core.lab.selectors import Exact


def inputs():
    return draws(0, (4, 20, 8), (2, 20, 8), (2, 20, 8), (4, 20, 8))


def test_forms_agree():
    q, k, v, g = inputs()
    start = lambda n: m.start(k[:, :n], v[:, :n])  # noqa: E731
    steps_equal_parallel(m.step, start, m.parallel(q, k, v, g), (q, k, v, g))


def test_open_gates_are_softmax_attention():
    q, k, v, g = inputs()
    plain = softmax_attention.parallel(q, k, v)
    np.testing.assert_array_equal(m.parallel(q, k, v, np.full_like(g, np.inf)), plain)
    np.testing.assert_allclose(m.parallel(q, k, v, np.zeros_like(g)), plain / 2)


def test_each_channel_has_its_gate():
    q, k, v, g = inputs()
    g[1, 5, 3] = -np.inf
    out = m.parallel(q, k, v, g)
    assert np.argwhere(out == 0).tolist() == [[1, 5, 3]]


def test_causality():
    is_causal(m.parallel, inputs(), 11)


def test_selection_through_the_library():
    """The gate comes after the sums, so tokens are selected as for softmax attention."""
    q, k, v = draws(3, (4, 4, 32), (2, 300, 32), (2, 300, 32))
    (g,) = draws(4, q.shape)
    full = m.parallel(3 * q, k, v, g)
    low = [x.astype(np.float32) for x in (3 * q, k, v)]

    def error(indices):
        out = sigmoid(g) * attend(*low, indices)
        return np.linalg.norm(out - full) / np.linalg.norm(full)

    exact = error(Exact()(*low[:2], 64))
    codes = error(select_topk(low[0], encode(low[1]), 64))
    first = error(np.broadcast_to(np.arange(64, dtype=np.int32), (4, 4, 64)).copy())
    assert exact < codes < 0.05 < 0.5 < first
