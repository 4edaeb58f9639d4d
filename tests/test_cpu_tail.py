"""The tail on the CPU at sizes where bounds are guessed and heads are divided into parts."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose

from adamas_core import Selection, Softmax, cpu, encode, encode_values, reference

TOLERANCE = 1e-5  # relative to the largest value; sums of weights are float32


def _assert_equal(q: Any, k: Any, v: Any, budget: int, selection: Selection, scale: Any) -> None:
    given = (
        q,
        k,
        v,
        encode(k, bits=3).record,
        encode_values(v).record,
        budget,
        selection,
        Softmax(scale),
    )
    expected, expected_lse = reference.attend_tail(*given)
    out, lse = cpu.attend_tail(*given)
    assert_allclose(out, expected, rtol=0, atol=TOLERANCE * np.abs(v).max())
    assert_allclose(lse, expected_lse, rtol=TOLERANCE, atol=TOLERANCE)


def _inputs(S: int, heads: int, D: int = 16) -> tuple[Any, Any, Any]:
    rng = np.random.default_rng(S + heads)
    k, v = rng.standard_normal((2, 1, 1, S, D), dtype=np.float32)
    return 2 * rng.standard_normal((1, heads, 1, D), dtype=np.float32), k, v


@pytest.mark.parametrize("tail", [1, 300])
@pytest.mark.parametrize("scale", [None, 0.01, 3.0, -0.3])
@pytest.mark.parametrize(("S", "heads"), [(5000, 4), (33000, 1), (20000, 2)])
def test_sizes(S: int, heads: int, scale: float | None, tail: int) -> None:
    _assert_equal(*_inputs(S, heads), 32, Selection(tail=tail), scale)


@pytest.mark.parametrize("options", [{"refine": 3}, {"sinks": 3, "recent": 5}])
def test_options(options: dict[str, int]) -> None:
    _assert_equal(*_inputs(6000, 3), 24, Selection(tail=100, **options), None)


@pytest.mark.parametrize("tile", [2, 3])
def test_bounds_that_are_guessed_wrong(tile: int) -> None:
    """The nearest tokens fill a tile of the sample, or the one beside it.

    In the second case the guess is far below them, and more tokens are near than have a place: the
    weights of those that have none are more than exp(8) above the shift.
    """
    q, k, v = _inputs(4096, 1)
    k[0, 0, 64 * tile : 64 * tile + 60] = 6 * q[0, 0]
    _assert_equal(q, k, v, 8, Selection(tail=20), None)
    _assert_equal(q, k, v, 8, Selection(tail=100), None)


@pytest.mark.parametrize("D", [1, 8, 16, 32, 48, 64, 80, 128, 256])
def test_head_dims(D: int) -> None:
    _assert_equal(*_inputs(200, 2, D), 16, Selection(tail=50), None)


def test_noise_far_above_the_estimates() -> None:
    """Large keys in another direction: estimates of 10 to 100 nats, and as much noise."""
    for seed in range(4):
        q, k, v = _inputs(5000 + seed, 1, 32)
        other = np.random.default_rng(seed).standard_normal((1, 1, 1, 32), dtype=np.float32)
        k[:, :, 1000:1060] = 6 * (2 * q + 5 * other)
        _assert_equal(4 * q, k, v, 1, Selection(tail=1), None)


@pytest.mark.parametrize("cap", [1e30, float(np.finfo(np.float32).max)])
@pytest.mark.parametrize("tail", [1, 200])
def test_caps_far_above_the_logits(cap: float, tail: int) -> None:
    q, k, v = _inputs(700, 2)
    given = (q, k, v, encode(k, bits=3).record, encode_values(v).record, 1, Selection(tail=tail))
    capped, plain = (cpu.attend_tail(*given, Softmax(soft_cap=c)) for c in (cap, None))
    for x, y in zip(capped, plain, strict=True):
        assert_allclose(x, y, rtol=0, atol=TOLERANCE * np.abs(v).max())


def test_no_token() -> None:
    q, k, v = _inputs(0, 2)
    codes, values = encode(k, bits=3).record, encode_values(v).record
    out, lse = cpu.attend_tail(q, k, v, codes, values, 1, Selection(tail=1), None)
    assert (out == 0).all()
    assert (lse == -np.inf).all()


@pytest.mark.parametrize("heads", [2, 9])
@pytest.mark.parametrize("spread", [0.1, 1.0])
def test_means_far_above_the_spread(spread: float, heads: int) -> None:
    """Estimates of two bits no longer tell the distance, which is counted again.

    The offset is a float16 after the transform, so it is the mean of each tile exactly.
    """
    q, k, v = _inputs(600, heads)
    offset = 64.0 * np.random.default_rng(1).integers(-500, 500, 16)
    k = (spread * k + reference.hadamard(offset.astype(np.float32))).astype(np.float32)
    on_mean, s_unit = np.abs(reference.hadamard(q) @ offset), spread * np.abs(q).max() / 14
    assert (on_mean > 2.0**20 * s_unit).any() == (spread < 1)
    _assert_equal(q, k, v, 24, Selection(tail=200), 1e-5)


@pytest.mark.parametrize("size", [1e-34, 1e-40])
def test_queries_of_tiny_numbers(size: float) -> None:
    """Products with the unit lose bits, so distances are counted again."""
    q, k, v = _inputs(600, 2)
    _assert_equal((size * q).astype(np.float32), k, v, 24, Selection(tail=200), None)


def test_estimates_far_above_the_logits_of_chosen_tokens() -> None:
    """The rest is far less than the chosen tokens have by two bits, and is added up by itself."""
    rng = np.random.default_rng(35)
    k, v = rng.standard_normal((2, 1, 1, 300, 128), dtype=np.float32)
    sign = rng.choice([-1, 1], 128).astype(np.float32)
    k[0, 0, 150] = 0.05 * sign
    k[0, 0, 150, 0] = 20
    k, q = reference.hadamard(k), reference.hadamard(2 * sign[None, None, None])
    _assert_equal(q, k, v, 1, Selection(tail=16), None)
    _assert_equal(q, k, v, 20, Selection(tail=16), None)


def test_equal_weights_of_many_coded_tokens() -> None:
    """Rounding errors do not add up in one coordinate of the output."""
    q, k, v = _inputs(2000, 1, 128)
    _assert_equal(0 * q, k, v, 43, Selection(tail=30000), None)


def test_a_sum_of_values_that_no_token_needs() -> None:
    """Where both tiers have all tokens, the sum of all values is not read."""
    q, k, v = _inputs(64, 1, 64)
    values = encode_values(v).record
    given = q, k, v, encode(k, bits=3).record
    expected, _ = cpu.attend_tail(*given, values, 2, Selection(tail=62), None)
    for total in (np.nan, np.inf):
        other = values._replace(total=np.full_like(values.total, total))
        out, _ = cpu.attend_tail(*given, other, 2, Selection(tail=62), None)
        np.testing.assert_array_equal(out, expected)


def test_any_refine() -> None:
    q, k, v = _inputs(300, 2)
    out, _ = cpu.attend_tail(
        q, k, v, encode(k, bits=3).record, encode_values(v).record, 8,
        Selection(tail=5, refine=2**62), None,
    )  # fmt: skip
    assert np.isfinite(out).all()
