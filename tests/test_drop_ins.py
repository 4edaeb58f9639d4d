import numpy as np
import pytest
from mechanism_checks import draws

from adamas_core.lab import drop_ins as m
from adamas_core.lab.mechanism_catalog import ROWS
from adamas_core.lab.mechanisms import softmax_attention

S = 40
SIZES = m.Sizes(4, 2, 16, S)


def inputs():
    return [x.astype(np.float32) for x in draws(0, (4, S, 16), (2, S, 16), (2, S, 16))]


def last(drop_in, q, k, v, steps=5):
    n = S - steps
    state = drop_in.start(q[:, :n], k[:, :n], v[:, :n])
    outs = [drop_in.step(state, q[:, t], k[:, t], v[:, t]) for t in range(n, S)]
    return np.stack(outs, axis=1)


def test_every_row_of_the_catalog_can_be_run():
    assert list(ROWS) == list(m.BUILDERS)


@pytest.mark.parametrize("name", m.BUILDERS)
def test_steps_give_outputs_of_the_right_shape(name):
    q, k, v = inputs()
    out = last(m.BUILDERS[name](SIZES), q, k, v)
    assert out.shape == (4, 5, 16)
    assert out.dtype == np.float32
    assert np.isfinite(out).all()


# MoSA chooses over the whole sequence in a prefill. Star's phase 1 does not see all tokens.
WHOLE = [n for n, build in m.BUILDERS.items() if build(SIZES).prefill is not None]


@pytest.mark.parametrize("name", [n for n in WHOLE if n not in ("mosa", "star")])
def test_a_prefill_gives_the_outputs_of_steps(name):
    drop_in = m.BUILDERS[name](SIZES)
    q, k, v = inputs()
    whole = drop_in.prefill(q, k, v)
    np.testing.assert_allclose(last(drop_in, q, k, v), whole[:, -5:], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", ["softmax", "flash", "star", "mla", "adamas", "dsa", "lolcats"])
def test_what_sees_all_tokens_is_full_attention(name):
    """The budget and the window of 128 are more than all tokens here."""
    q, k, v = inputs()
    full = softmax_attention.parallel(q, k, v)[:, -5:]
    np.testing.assert_allclose(last(m.BUILDERS[name](SIZES), q, k, v), full, atol=1e-5)


def test_neutral_numbers_give_full_attention_in_another_length():
    q, k, v = inputs()
    full = softmax_attention.parallel(q, k, v)[:, -5:]
    np.testing.assert_allclose(2 * last(m.gated(SIZES), q, k, v), full, atol=1e-5)
    out = last(m.convolved(SIZES), q, k, v)
    cosine = (out * full).sum(-1) / np.linalg.norm(out, axis=-1) / np.linalg.norm(full, axis=-1)
    np.testing.assert_allclose(cosine, 1, atol=1e-5)


def test_filled_is_as_large_as_the_state_of_a_prefill():
    q, k, v = inputs()
    drop_in = m.looped(SIZES)
    sizes = [
        [c.k.size + c.v.size for c in make(q, k, v)] for make in (drop_in.start, drop_in.filled)
    ]
    assert sizes[0] == sizes[1]
