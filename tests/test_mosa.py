import numpy as np
from mechanism_checks import draws, is_causal, size_is

from adamas_core.lab.mechanisms import mosa as m
from adamas_core.lab.mechanisms import softmax_attention
from adamas_core.lab.mechanisms.tokens import recurrent, sigmoid


def inputs():
    q, k, v, r = draws(0, (3, 20, 8), (3, 20, 8), (3, 20, 8), (3, 20))
    return q, k, v, sigmoid(r)


def test_the_equation_in_plain_loops():
    q, k, v, r = inputs()
    out = m.parallel(q, k, v, r, 6)
    for h in range(3):
        best = sorted(np.argsort(r[h])[-6:])
        for t in range(20):
            expected = np.zeros(8)
            if t in best:
                I = [s for s in best if s <= t]
                p = np.exp(k[h, I] @ q[h, t] / np.sqrt(8))
                expected = r[h, t] * (p / p.sum() @ v[h, I])
            np.testing.assert_allclose(out[h, t], expected)


def test_all_tokens_chosen_is_scored_attention():
    q, k, v, r = inputs()
    expected = r[..., None] * softmax_attention.parallel(q, k, v)
    np.testing.assert_allclose(m.parallel(q, k, v, r, 20), expected)
    np.testing.assert_allclose(m.parallel(q, k, v, r, 99), expected)
    np.testing.assert_allclose(
        recurrent(m.step, m.start(*(x[:, :0] for x in (k, v, r)), 20), *inputs()), expected
    )


def test_a_step_is_the_last_output_of_the_tokens_so_far():
    q, k, v, r = inputs()
    for n in (0, 3, 19):
        state = m.start(k[:, :n], v[:, :n], r[:, :n], 6)
        for t in range(n, 20):
            out = m.step(state, q[:, t], k[:, t], v[:, t], r[:, t])
            so_far = [x[:, : t + 1] for x in inputs()]
            np.testing.assert_allclose(out, m.parallel(*so_far, 6)[:, t])


def test_only_chosen_tokens_are_projected():
    x, w_r, w_q, w_k, w_v = draws(1, (1, 20, 5), (3, 5), *3 * [(3, 5, 8)])
    r = sigmoid(x[0] @ w_r.T).T
    expected = m.parallel(x @ w_q, x @ w_k, x @ w_v, r, 6)
    np.testing.assert_allclose(m.from_tokens(x, w_r, w_q, w_k, w_v, 6), expected)
    other = x.copy()
    dropped = set(range(20)) - {t for row in m.chosen(r, 6) for t in row}
    for t in dropped:  # a token that no head chose may be anything with a lower score
        other[0, t] = -100 * w_r.sum(axis=0)
    kept = m.from_tokens(other, w_r, w_q, w_k, w_v, 6)
    assert dropped
    if (m.chosen(sigmoid(other[0] @ w_r.T).T, 6) == m.chosen(r, 6)).all():
        np.testing.assert_allclose(kept, expected)


def test_attention_is_causal_and_the_choice_looks_ahead():
    q, k, v, r = inputs()
    is_causal(lambda *x: m.parallel(*x, r, 6), (q, k, v), 11)
    later = r.copy()
    later[:, 15:] = 1  # five tokens with the largest scores leave one place
    assert not np.allclose(m.parallel(q, k, v, later, 6)[:, :15], m.parallel(q, k, v, r, 6)[:, :15])


def test_kept():
    q, k, v, r = inputs()
    start = lambda n: m.start(k[:, :n], v[:, :n], r[:, :n], 6)  # noqa: E731
    size_is(start, m.step, (q, k, v, r), lambda S: m.kept(S, 3, 8, 6))
