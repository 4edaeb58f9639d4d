"""What "equal" means: to the bit, or within a stated bound of a float64 result."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

# attend against float64, on inputs of unit scale: the sums' own error, and half a unit in the last
# place of the dtype that out is rounded to.
ATTEND = 2e-6
ROUNDING = {"float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8}
# Where float16's spacing is that of its subnormals.
SMALLEST = {"float32": 0.0, "float16": 2.0**-25, "bfloat16": 0.0}


def assert_same_bits(got: NDArray[Any], expected: NDArray[Any]) -> None:
    """Same shape, dtype and bits; any NaN equals any other."""
    assert type(got) is np.ndarray
    assert (got.shape, got.dtype) == (expected.shape, expected.dtype)
    if expected.dtype.kind == "f":
        nan = np.isnan(expected)
        np.testing.assert_array_equal(np.isnan(got), nan)
        got, expected = (np.where(nan, 0, x).astype(x.dtype) for x in (got, expected))
        words = f"u{expected.itemsize}"
        got, expected = np.ascontiguousarray(got).view(words), expected.view(words)
    np.testing.assert_array_equal(got, expected)


def assert_attention(got: NDArray[Any], exact: NDArray[np.float64], dtype: np.dtype[Any]) -> None:
    """`got` is `exact` within ATTEND and the rounding of its dtype."""
    assert (got.shape, got.dtype) == (exact.shape, dtype)
    wide = got.astype(np.float64)
    np.testing.assert_array_equal(np.isnan(wide), np.isnan(exact))
    bound = ATTEND + ROUNDING[dtype.name] * np.abs(exact) + SMALLEST[dtype.name]
    wrong = ~(np.abs(wide - exact) <= bound) & ~np.isnan(exact) & ~(wide == exact)
    assert not wrong.any(), f"off by {np.abs(wide - exact)[wrong].max()}"
