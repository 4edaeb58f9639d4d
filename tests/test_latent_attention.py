import numpy as np
from mechanism_checks import draws, is_causal, size_is, steps_equal_parallel

from adamas_core import attend, encode, select_topk
from adamas_core.lab.mechanisms import latent_attention as m
from adamas_core.lab.mechanisms import softmax_attention
from adamas_core.lab.selectors import Exact


def inputs(L=20, H=4, D=6, D_c=10, D_r=4):
    shapes = (H, L, D), (H, L, D_r), (1, L, D_c), (1, L, D_r)
    *given, uk, uv = draws(0, *shapes, (H, D_c, D), (H, D_c, 7))
    return *given, m.Weights(uk / np.sqrt(D_c), uv)


def test_forms_agree():
    q, q_rope, c, k_rope, weights = inputs()
    whole = m.parallel(q, q_rope, c, k_rope, weights)
    start = lambda n: m.start(c[:, :n], k_rope[:, :n], weights)  # noqa: E731
    steps_equal_parallel(m.step, start, whole, (q, q_rope, c, k_rope))


def test_the_absorbed_form_is_the_plain_one():
    np.testing.assert_allclose(m.absorbed(*inputs()), m.parallel(*inputs()))


def test_the_equation_in_plain_loops():
    q, q_rope, c, k_rope, weights = inputs()
    out = m.parallel(q, q_rope, c, k_rope, weights)
    for h, t in np.ndindex(4, 20):
        k, v = c[0, : t + 1] @ weights.uk[h], c[0, : t + 1] @ weights.uv[h]
        x = (k @ q[h, t] + k_rope[0, : t + 1] @ q_rope[h, t]) / np.sqrt(10)
        np.testing.assert_allclose(out[h, t], np.exp(x) / np.exp(x).sum() @ v)


def test_a_latent_row_of_whole_keys_and_values_is_mqa():
    q, k, v = draws(1, (4, 20, 6), (1, 20, 6), (1, 20, 6))
    uk, uv = np.eye(12)[:, :6], np.eye(12)[:, 6:]
    weights = m.Weights(np.stack([uk] * 4), np.stack([uv] * 4))
    none = np.zeros((4, 20, 0)), np.zeros((1, 20, 0))
    out = m.parallel(q, none[0], np.concatenate([k, v], axis=-1), none[1], weights)
    np.testing.assert_allclose(out, softmax_attention.parallel(q, k, v))


def test_causality():
    q, q_rope, c, k_rope, weights = inputs()
    is_causal(lambda *x: m.parallel(*x, weights), (q, q_rope, c, k_rope), 11)


def test_kept():
    q, q_rope, c, k_rope, weights = inputs()
    start = lambda n: m.start(c[:, :n], k_rope[:, :n], weights)  # noqa: E731
    size_is(start, m.step, (q, q_rope, c, k_rope), lambda S: m.kept(S, 10, 4))


def test_selection_through_the_library():
    """The keys of the library are [c, k_rope], and the values their first D_c columns."""
    q, q_rope, c, k_rope, weights = inputs(300, D_c=512, D_r=64, D=32)
    queries = m.absorbed_queries(3 * q, q_rope, weights)[:, -4:].astype(np.float32)
    rows = np.concatenate([c, k_rope], axis=-1).astype(np.float32)
    full = m.parallel(3 * q, q_rope, c, k_rope, weights)[:, -4:]
    scale = (32 + 64) ** -0.5

    def out(indices):
        latent = attend(queries, rows, rows[..., :512], indices, scale=scale)
        return latent.astype(np.float64) @ weights.uv

    def error(indices):
        return np.linalg.norm(out(indices) - full) / np.linalg.norm(full)

    assert error(None) < 1e-5
    exact, codes = Exact()(queries, rows, 64), select_topk(queries, encode(rows), 64)
    assert error(exact) < error(codes) < 1.3 * error(exact) < 0.5
