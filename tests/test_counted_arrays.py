import numpy as np
import pytest
from mechanism_checks import draws

from adamas_core.lab.counted_arrays import Counted, arrays_in, counted, counting
from adamas_core.lab.mechanisms import flash_tiles, softmax_attention
from adamas_core.lab.mechanisms.tokens import Rows


def test_operations():
    a, b = map(counted, draws(0, (2, 3, 5), (2, 5, 7)))
    with counting(None) as tally:
        c = a @ b
    assert tally.operations == 2 * 2 * 3 * 5 * 7
    with counting(None) as tally:
        (np.exp(c) + 1).sum(axis=-1)
    assert tally.operations == 3 * c.size
    assert isinstance(np.where(c > 0, c, 0), Counted)
    np.testing.assert_array_equal(c, np.asarray(a) @ np.asarray(b))


def test_outside_of_the_block_nothing_is_counted():
    (a,) = map(counted, draws(0, (3, 3)))
    with counting(None) as tally:
        pass
    assert (a + a).shape == (3, 3)
    assert tally.operations == 0


def test_bytes_are_those_of_the_state():
    state, other = map(counted, draws(0, (10, 4), (10, 4)))
    with counting([state]) as tally:
        other + other
        assert tally.read == 0
        state[2:5] * 2
        assert tally.read == 3 * 4 * 8
        rows = state[[1, 7]]
        assert tally.read == 5 * 4 * 8
        rows + rows
        assert tally.read == 5 * 4 * 8
        np.concatenate([state, other])
        assert tally.read == 15 * 4 * 8
        state.copy() + 1
        assert tally.read == 15 * 4 * 8
        np.broadcast_to(state, (3, 10, 4)) + 1  # a row that is repeated is read once
        assert tally.read == 25 * 4 * 8


def test_arrays_in():
    a, b, c, d = draws(0, (1, 1, 1), (1, 1, 2), (1, 1, 3), (1, 1, 4))
    found = list(arrays_in(({"x": [a, 3]}, Rows(b), softmax_attention.start(c, d))))
    np.testing.assert_array_equal(found[0], a)
    assert [x.shape[0] for x in found] == [1, 1, 1, 1]
    assert [x.shape[2] for x in found] == [1, 2, 3, 4]


def test_a_step_of_softmax_attention():
    """4 H D S operations of the products, and all of the cache is read once."""
    H, S, D = 4, 300, 16
    q, k, v = map(counted, draws(0, (H, S + 2, D), (2, S + 2, D), (2, S + 2, D)))
    state = softmax_attention.start(k[:, :S], v[:, :S])
    softmax_attention.step(state, q[:, S], k[:, S], v[:, S])
    with counting(state) as tally:
        softmax_attention.step(state, q[:, S + 1], k[:, S + 1], v[:, S + 1])
    assert tally.read == 2 * 2 * (S + 2) * D * 8
    assert 4 * H * D * (S + 2) < tally.operations < 4.5 * H * D * (S + 2)


@pytest.mark.parametrize("form, most", [(flash_tiles.chunked, 64 * 64 * 2), (None, 256 * 256 * 2)])
def test_tiles_make_no_matrix_of_all_weights(form, most):
    q, k, v = map(counted, draws(0, (2, 256, 8), (2, 256, 8), (2, 256, 8)))
    with counting(None) as tally:
        (form or softmax_attention.parallel)(q, k, v)
    assert tally.largest == most


def test_a_triangular_system_and_sorts():
    a, b = map(counted, draws(0, (2, 6, 6), (2, 6, 3)))
    with counting(None) as tally:
        np.linalg.solve(a, b)
    assert tally.operations == 2 * (2 * 6**3 // 3 + 2 * 36 * 3)
    with counting(None) as tally:
        np.argsort(a, axis=-1)
    assert tally.operations == 72
