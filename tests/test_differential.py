import numpy as np
from mechanism_checks import draws, is_causal, size_is, steps_equal_parallel

from adamas_core import encode, select_topk
from adamas_core.lab.mechanisms import differential as m
from adamas_core.lab.mechanisms import softmax_attention
from adamas_core.lab.selectors import Exact


def inputs():
    return draws(0, (8, 20, 6), (4, 20, 6), (2, 20, 12))  # H = 4, H_kv = 2


def test_forms_agree():
    q, k, v = inputs()
    whole = m.parallel(q, k, v, 0.4, 0.2)
    start = lambda n: m.start(k[:, :n], v[:, :n])  # noqa: E731
    step = lambda *x: m.step(*x, 0.4, 0.2)  # noqa: E731
    steps_equal_parallel(step, start, whole, (q, k, v))


def test_the_equation_in_plain_loops():
    q, k, v = inputs()
    out = m.parallel(q, k, v, 0.4, 0.2)
    for h, t in np.ndindex(4, 20):
        maps = []
        for half in (0, 1):
            x = k[2 * half + h // 2, : t + 1] @ q[4 * half + h, t] / np.sqrt(6)
            maps.append(np.exp(x) / np.exp(x).sum())
        y = (maps[0] - 0.4 * maps[1]) @ v[h // 2, : t + 1]
        np.testing.assert_allclose(out[h, t], 0.8 * y / np.sqrt((y**2).mean() + 1e-5))


def test_without_the_second_map_it_is_softmax_attention():
    q, k, v = inputs()
    expected = softmax_attention.parallel(q[:4], k[:2], v)
    np.testing.assert_array_equal(m.difference(q, k, v, 0.0), expected)


def test_lambda():
    lq1, lk1, lq2, lk2 = draws(1, *4 * [(6,)])
    expected = np.exp((lq1 * lk1).sum()) - np.exp((lq2 * lk2).sum()) + 0.3
    assert np.isclose(m.lambda_of(lq1, lk1, lq2, lk2, 0.3), expected)
    assert m.lambda_of(lq1, lk1, lq1, lk1, 0.3) == 0.3


def test_causality():
    is_causal(lambda *x: m.parallel(*x, 0.4, 0.2), inputs(), 11)


def test_kept():
    q, k, v = inputs()
    start = lambda n: m.start(k[:, :n], v[:, :n])  # noqa: E731
    step = lambda *x: m.step(*x, 0.4, 0.2)  # noqa: E731
    size_is(start, step, (q, k, v), lambda S: m.kept(S, 2, 6, 12))


def test_selection_through_the_library():
    """Each map chooses for itself by codes, and each head takes the union of its two choices."""
    q, k, v = draws(3, (8, 4, 32), (4, 300, 32), (2, 300, 64))
    q = 3 * q
    low = [x.astype(np.float32) for x in (q, k)]
    full = m.difference(q, k, v, 0.4)
    everything = np.broadcast_to(np.arange(300, dtype=np.int32), (8, 4, 300))
    seen = np.where(np.arange(300) <= np.arange(296, 300)[:, None], everything, -1)
    np.testing.assert_allclose(m.selected(q, k, v, 0.4, seen), full)

    def error(chosen):
        out = m.selected(q, k, v, 0.4, chosen)
        return np.linalg.norm(out - full) / np.linalg.norm(full)

    exact = error(Exact()(*low, 64))
    codes = error(select_topk(low[0], encode(low[1]), 64))
    first = error(np.where(seen < 64, seen, -1))
    assert exact < codes < 0.05 < 0.5 < first
