"""Arrays as kernels see them."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from adamas_core.cpu import _array
from adamas_core.cpu._array import address_of, dtype_code, k_fields, q_fields, v_fields


def test_address_of_the_first_element() -> None:
    x = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    frozen = x.copy()
    frozen.flags.writeable = False
    for array in (x, x[:, 1:, 2:], x[::-1], x.swapaxes(0, 1), frozen, x[:0]):
        assert address_of(array) == array.__array_interface__["data"][0]


def test_address_of_refuses_what_is_no_array() -> None:
    with pytest.raises((TypeError, AttributeError), match=r"list"):
        address_of([1.0])  # type: ignore[arg-type]


def test_dtype_codes() -> None:
    found = [dtype_code(np.empty(1, t)) for t in (np.float32, np.float16, ml_dtypes.bfloat16)]
    assert found == [_array.FLOAT32, _array.FLOAT16, _array.BFLOAT16]
    with pytest.raises(KeyError):
        dtype_code(np.empty(1, np.float64))


def test_four_axes() -> None:
    for shape in ((5,), (2, 5), (3, 2, 5), (4, 3, 2, 5)):
        x = np.zeros(shape)
        seen = _array.with_four_axes(x)
        assert seen.shape == (1,) * (4 - len(shape)) + shape
        assert np.shares_memory(seen, x)
    assert _array.with_four_axes(np.zeros((6, 4, 3, 2, 5))).shape == (24, 3, 2, 5)


def test_fields_are_those_of_the_records() -> None:
    q = np.zeros((2, 6, 3, 8), np.float16)
    k = np.zeros((2, 40, 3, 8), np.float32).swapaxes(1, 2)
    q_found, k_found, v_found = q_fields(q), k_fields(k), v_fields(k)
    assert tuple(q_found) == _array.Q_FIELDS
    assert tuple(k_found) == _array.K_FIELDS
    assert tuple(v_found) == _array.V_FIELDS
    assert [q_found[n] for n in ("B", "H", "L", "D")] == [2, 6, 3, 8]
    assert [q_found[n] for n in ("q_b", "q_h", "q_l")] == [6 * 48, 48, 16]
    assert [k_found[n] for n in ("k_b", "k_h", "k_s", "S")] == [40 * 96, 32, 96, 40]
    assert [v_found[n] for n in ("v_b", "v_h", "v_s")] == [40 * 96, 32, 96]
