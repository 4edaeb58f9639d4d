import numpy as np
import pytest

from adamas_core.lab import needles as m

SMALL = m.SIZES._replace(S=512)


@pytest.mark.parametrize(
    "name", ["softmax", "flash", "star", "mla", "gated", "multi-token", "adamas"]
)
def test_attention_to_all_tokens_finds_every_needle(name):
    assert m.found(name, SMALL, 4) == 1


@pytest.mark.parametrize("name", ["linear", "log-linear", "gated-delta", "kda"])
def test_a_state_of_d_x_d_loses_them(name):
    assert m.found(name, SMALL, 8) < 0.2


def test_a_window_finds_those_within():
    """Needles are at equal distances, so that one of eight lies in the last 128 of 1024 tokens."""
    assert m.found("window", m.SIZES._replace(S=1000), 8) == 1 / 8


def test_nearest_shares_kv_heads():
    v = np.eye(4, dtype=np.float32)[None]
    out = np.array([[0, 3, 0, 0.1], [0, 0, 0, 0], [0, 0, 0, -2]], np.float32)
    assert m.nearest(out, v).tolist() == [1, -1, 0]
    two = np.stack([v[0], v[0][::-1]])
    assert m.nearest(out[[0, 0]], two).tolist() == [1, 2]
