import numpy as np
import pytest
from mechanism_checks import draws, size_of

from adamas_core import KVCache, Selection, decode_attention
from adamas_core.lab.mechanisms import looped_decoder as m
from adamas_core.lab.mechanisms import softmax_attention
from adamas_core.lab.mechanisms.tokens import rms_norm, sigmoid

H, H_KV, E, D = 4, 2, 10, 6


def inputs(L=15, D=D):
    shapes = (1, L, E), (H, E, D), (H_KV, E, D), (H_KV, E, D), (H, D, E), (E, E), (E,)
    x, *weights = draws(0, *shapes)
    return x, m.Weights(*(w / 3 for w in weights))


@pytest.mark.parametrize("loops", [1, 2, 4])
def test_forms_agree(loops):
    x, weights = inputs()
    hidden, p = m.parallel(x, weights, loops)
    for n in (0, 1, 14):
        state = m.start(x[:, :n], weights, loops)
        for t in range(n, 15):
            own, share = m.step(state, x[:, t], weights)
            np.testing.assert_allclose(own, hidden[:, t])
            np.testing.assert_allclose(share, p[:, t])


def test_a_loop_is_the_same_layer_again():
    x, weights = inputs()
    hidden, _ = m.parallel(x, weights, 3)
    twice, _ = m.parallel(hidden[:1], weights, 2)
    np.testing.assert_array_equal(hidden[1:], twice)
    y = rms_norm(x)
    heads = softmax_attention.parallel(y @ weights.q, y @ weights.k, y @ weights.v)
    h = x[0] + sum(heads[i] @ weights.out[i] for i in range(H))
    np.testing.assert_allclose(hidden[0], h + rms_norm(h) @ weights.mlp)


def test_exit_probabilities():
    lam = np.array([0.5, 0.25, 0.9])
    np.testing.assert_allclose(m.exit_probabilities(lam), [0.5, 0.5 * 0.25, 0.5 * 0.75])
    x, weights = inputs()
    hidden, p = m.parallel(x, weights, 4)
    np.testing.assert_allclose(p.sum(axis=0), 1)
    np.testing.assert_allclose(p[0], sigmoid(hidden[0] @ weights.gate))


def test_exit_loop():
    p = np.array([[0.5, 0.1], [0.125, 0.1], [0.375, 0.8]])
    assert m.exit_loop(p, 0.4).tolist() == [0, 2]
    assert m.exit_loop(p, 0.6).tolist() == [1, 2]
    assert m.exit_loop(p, 2.0).tolist() == [2, 2]


def test_causality():
    x, weights = inputs()
    other = x.copy()
    other[:, 8:] += 1
    before, after = (m.parallel(y, weights, 3)[0] for y in (x, other))
    np.testing.assert_array_equal(before[:, :8], after[:, :8])
    assert not np.allclose(before[:, 8:], after[:, 8:])


def test_kept():
    x, weights = inputs()
    for S in (0, 5, 15):
        caches = m.start(x[:, :S], weights, 3)
        assert sum(map(size_of, caches)) == m.kept(S, H_KV, D, 3)


def test_a_cache_and_a_selection_per_loop_through_the_library():
    """Loop j's keys and values are layer j of a KVCache, whose codes choose the tokens."""
    x, weights = inputs(200, D=32)
    weights = weights._replace(q=8 * weights.q)  # so that few tokens have most of the attention
    expected = m.parallel(x, weights, 3)[0][:, -1]
    caches = m.start(x[:, :-1], weights, 3)

    def last(budget):
        cache = KVCache(layers=3, selection=Selection(tail=0))
        h, hidden = x[:, -1:], []
        for loop, rows in enumerate(caches):
            q, k, v = (part.astype(np.float32) for part in m._projected(h, weights))
            cache.append(*(part.all.astype(np.float32) for part in rows), loop)
            cache.append(k, v, loop)
            out = decode_attention(q, cache, budget, layer=loop)
            h = m._layer(h, out, weights)
            hidden.append(h[0, 0])
        return np.stack(hidden)

    def error(budget):
        return np.linalg.norm(last(budget) - expected) / np.linalg.norm(expected)

    assert error(200) < 1e-5
    assert error(64) < 0.05 < error(1)
