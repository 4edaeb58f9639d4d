import numpy as np
import pytest
from mechanism_checks import draws

from adamas_core import attend
from adamas_core.lab import latent_rows as m


def inputs(D=64, H_kv=3, S=300):
    shapes = (2 * H_kv, 5, D), (H_kv, S, D), (H_kv, S, D)
    q, k, v = (x.astype(np.float32) for x in draws(0, *shapes))
    return 2 * q, k, v


@pytest.mark.parametrize("D, H_kv", [(64, 3), (64, 4), (96, 2), (256, 1)])
def test_logits_and_outputs_are_those_of_the_layer(D, H_kv):
    q, k, v = inputs(D, H_kv)
    layer = m.latent(q, k, v)
    assert layer.rows.shape == (1, 300, 576)
    logits = layer.q @ layer.rows[0].T
    expected = np.stack([q[h] @ k[h // 2].T for h in range(2 * H_kv)])
    np.testing.assert_allclose(logits, expected, atol=2e-4)
    out, lse = m.outputs(layer, None)
    theirs = attend(q, k, v, None, return_lse=True)
    np.testing.assert_allclose(out, theirs[0], atol=1e-4)
    np.testing.assert_allclose(lse, theirs[1], atol=1e-4)


def test_the_rope_key_is_as_it_is():
    q, k, v = inputs(256, 1)
    layer = m.latent(q, k, v)
    fast = [*range(32), *range(128, 160)]
    np.testing.assert_array_equal(layer.rows[0, :, 512:], k[0][:, fast])
    np.testing.assert_array_equal(layer.q[:, :, 512:], q[:, :, fast])


def test_codes_beside_the_exact_choice():
    found = m.compared(*inputs(), 64)
    assert 0.3 < found["mass"] < 1
    assert 0.9 < found["relative"] < found["refined"] <= 1 + 1e-6
    assert found["error_exact"] <= found["error_refined"] < found["error_codes"] < 0.5
    whole = m.compared(*inputs(), 300)
    assert whole["relative"] == pytest.approx(1, abs=1e-5)
    assert whole["error_codes"] < 1e-5


@pytest.mark.parametrize("D, H_kv", [(64, 5), (32, 2)])
def test_layers_that_do_not_fit(D, H_kv):
    with pytest.raises(ValueError, match="latent: k of shape"):
        m.latent(*inputs(D, H_kv))
