import numpy as np
import pytest
from mechanism_checks import draws

from adamas_core.lab.mechanisms.tokens import (
    Rows,
    causal,
    mixed,
    recurrent,
    rms_norm,
    scores,
    sigmoid,
    softmax,
)


@pytest.mark.parametrize("first", [0, 1, 5])
def test_rows_grow(first):
    (x,) = draws(0, (2, 30, 3))
    rows = Rows(x[:, :first])
    for t in range(first, 30):
        np.testing.assert_array_equal(rows.append(x[:, t]), x[:, : t + 1])
    assert rows.size == x.size


def test_rows_leave_the_given_array_as_it_is():
    (x,) = draws(0, (2, 4, 3))
    before = x.copy()
    rows = Rows(x)
    rows.data[:] = 0
    np.testing.assert_array_equal(x, before)


def test_recurrent_stacks_the_steps_on_the_second_axis():
    x, g = draws(0, (2, 5, 3), (2, 5))
    out = recurrent(lambda state, row, gate: state + gate[:, None] * row, 1.0, x, g)
    np.testing.assert_array_equal(out, 1.0 + g[..., None] * x)


def test_causal_is_of_the_last_tokens():
    assert causal(2, 3).tolist() == [[True, True, False], [True, True, True]]


def test_scores_and_mixed_share_kv_heads():
    q, k, v = draws(0, (4, 3, 6), (2, 5, 6), (2, 5, 7))
    p = scores(q, k)
    assert p.shape == (4, 3, 5)
    for h in range(4):
        np.testing.assert_allclose(p[h], q[h] @ k[h // 2].T / np.sqrt(6))
        np.testing.assert_allclose(mixed(p, v)[h], p[h] @ v[h // 2])
    np.testing.assert_allclose(scores(q, k, scale=2), 2 * np.sqrt(6) * p)


def test_softmax_of_no_token_is_zero():
    p = softmax(np.zeros((1, 2, 3)), np.array([[True, True, False], [False] * 3]))
    assert p.tolist() == [[[0.5, 0.5, 0], [0, 0, 0]]]


def test_rms_norm_and_sigmoid():
    (x,) = draws(0, (4, 50))
    np.testing.assert_allclose((rms_norm(x, 0) ** 2).mean(axis=-1), 1)
    np.testing.assert_allclose(sigmoid(x) + sigmoid(-x), 1)
