"""RoPE: angles far out, and the scaling of its frequencies."""

from __future__ import annotations

import math

import numpy as np
import pytest

from adamas_core.llama import rope


def test_positions_stay_exact_far_out():
    cos, sin = rope.cos_sin(rope.Rope((1.0, 0.1, 0.01)), 10**6, 1)
    np.testing.assert_allclose(cos[0, 0, 0], math.cos(10**6), rtol=1e-6)
    np.testing.assert_allclose(sin[0, 0, 1], math.sin(10**5), rtol=1e-6)


def test_linear_scaling_stretches_positions():
    plain, _ = rope.scaled_rope(8, 10000.0)
    np.testing.assert_allclose(plain, [1, 0.1, 0.01, 0.001])
    scaled, gain = rope.scaled_rope(8, 10000.0, {"rope_type": "linear", "factor": 4.0})
    np.testing.assert_allclose(scaled, np.array(plain) / 4)
    assert gain == 1


LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def test_llama3_scaling_keeps_fast_pairs_and_divides_slow_ones():
    plain = np.array(rope.scaled_rope(128, 500000.0)[0])
    scaled = np.array(rope.scaled_rope(128, 500000.0, LLAMA3)[0])
    turns = 8192 * plain / (2 * math.pi)
    np.testing.assert_allclose(scaled[turns > 4], plain[turns > 4])
    np.testing.assert_allclose(scaled[turns < 1], plain[turns < 1] / 8)
    between = (turns > 1) & (turns < 4)
    share = (turns[between] - 1) / 3
    np.testing.assert_allclose(scaled[between], plain[between] * (share + (1 - share) / 8))
    assert between.any()


YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}


def test_yarn_scaling_ramps_over_pairs_and_has_a_gain():
    plain = np.array(rope.scaled_rope(128, 1e6)[0])
    scaled, gain = rope.scaled_rope(128, 1e6, YARN)
    share = np.array(scaled) / plain
    # ln(32768 / (2 pi 32)) * 64 / ln 1e6 = 23.6, and 39.65 for one turn: pairs 23 to 40.
    np.testing.assert_allclose(share[:24], 1)
    np.testing.assert_allclose(share[40:], 0.25)
    np.testing.assert_allclose(np.diff(share[23:41]), -0.75 / 17)
    assert gain == pytest.approx(0.1 * math.log(4) + 1)
    assert rope.scaled_rope(128, 1e6, YARN | {"attention_factor": 1.5})[1] == 1.5


@pytest.mark.parametrize(
    ("scaling", "message"),
    [
        ({"rope_type": "dynamic", "factor": 2.0}, "'dynamic' is not supported"),
        ({"rope_type": "linear"}, "'linear' needs 'factor'"),
        (LLAMA3 | {"mystery": 1}, "unknown settings.*mystery"),
    ],
)
def test_a_scaling_that_is_not_known_is_an_error(scaling, message):
    with pytest.raises(ValueError, match=message):
        rope.scaled_rope(8, 10000.0, scaling)
