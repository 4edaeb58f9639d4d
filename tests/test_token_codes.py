"""Codes of keys and of values: what they have in common."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from adamas_core import encode, encode_values


@pytest.fixture(params=[encode, encode_values])
def codes(request: pytest.FixtureRequest) -> Any:
    x = np.random.default_rng(0).standard_normal((2, 3, 100, 48)).astype(np.float32)
    return request.param(x, length=np.array([100, 70]))


def test_what_they_show(codes: Any) -> None:
    assert codes.shape == (2, 3, 100, 48)
    assert (codes.tokens, codes.head_dim, codes.backend, codes.device) == (100, 48, "cpu", "cpu")
    np.testing.assert_array_equal(codes.length, [100, 70])


def test_rows_of_the_open_tile_without_a_token_are_0() -> None:
    x = np.ones((2, 3, 100, 48), np.float32)
    codes = encode(x, length=np.array([100, 70]))
    codes.append(x[:, :, :30], count=np.array([30, 0]))
    assert codes.centers is not None
    open_tile = codes.centers.open_tile
    assert not open_tile[0, :, 130 % 64 :].any()
    assert open_tile[1, :, :6].any()
    assert not open_tile[1, :, 6:].any()


def test_new_rows_must_fit(codes: Any) -> None:
    name, rows = codes.name, codes.rows
    with pytest.raises(ValueError, match=rf"{name}.append: {rows} is .*; expected \(2, 3, S, 48\)"):
        codes.append(np.ones((2, 3, 1, 16), np.float32))
    with pytest.raises(ValueError, match=f"{name}.append: count=2; expected 0 to 1"):
        codes.append(np.ones((2, 3, 1, 48), np.float32), count=2)
    with pytest.raises(ValueError, match=rf"{name}.truncate: tokens=101; expected 0 to 100"):
        codes.truncate(101, np.ones((2, 3, 100, 48), np.float32))
    with pytest.raises(ValueError, match=rf"{name}.truncate: {rows} is .*at least 60 tokens"):
        codes.truncate(60, np.ones((2, 3, 59, 48), np.float32))
    assert codes.tokens == 100
