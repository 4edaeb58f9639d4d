"""quantize, quantize_query and encode: against plain formulas, and every backend to the bit."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from oracles import assert_same_bits, coordinates
from strategies import FINITE, cases, thresholds, transformed, vectors

from adamas_core import PAPER, reference
from adamas_core.reference.layout import TILE
from adamas_core.reference.quantize import from_planes, pack_bits, to_planes, unpack_bits


@given(data=st.data(), x=transformed())
def test_quantize_bits(kernels: ModuleType, data: st.DataObject, x: NDArray[np.float32]) -> None:
    t = data.draw(thresholds(x.shape[1]))
    assert_same_bits(kernels.quantize(x, t), reference.quantize(x, t))


@given(x=transformed(), bits=st.sampled_from([2, 3, 3, 4, 4, 5, 8]))
def test_quantize_query_bits(kernels: ModuleType, x: NDArray[np.float32], bits: int) -> None:
    assert_same_bits(kernels.quantize_query(x, bits), reference.quantize_query(x, bits))


@given(case=cases(), data=st.data())
def test_encode_bits(kernels: ModuleType, case: Any, data: st.DataObject) -> None:
    t = data.draw(thresholds(case.k.shape[1]))
    assert_same_bits(kernels.encode(case.k, t), reference.encode(case.k, t))


@given(case=cases(), data=st.data())
def test_encode_in_place(kernels: ModuleType, case: Any, data: st.DataObject) -> None:
    """New tokens are written to their slots. All other slots keep their contents."""
    B, H_kv, S, _ = case.k.shape
    t = data.draw(thresholds(H_kv))
    start = np.array(data.draw(st.lists(st.integers(0, 130), min_size=B, max_size=B)))
    T = -(-(130 + S) // TILE)
    room = np.random.default_rng(S).integers(
        0, 2**64, (2, B, H_kv, T + 1, *case.codes.planes.shape[4:]), np.uint64
    )
    planes, expected = room.copy(), room.copy()
    inner = (slice(None), slice(None), slice(None), slice(0, T))  # a view with one tile to spare
    assert kernels.encode(case.k, t, planes[inner], start).base is planes
    reference.encode(case.k, t, expected[inner], start)
    assert_same_bits(planes, expected)


@given(x=transformed(), data=st.data())
def test_code_counts_thresholds_below(
    backend: ModuleType, x: NDArray[np.float32], data: st.DataObject
) -> None:
    t = data.draw(thresholds(x.shape[1]))
    codes = coordinates(backend.quantize(x, t), 2)
    assert codes.shape[-1] % 64 == 0
    assert not codes[..., x.shape[-1] :].any()  # bits past Dt
    flat = np.broadcast_to(t, (x.shape[1], 3))
    for head in range(x.shape[1]):
        kept = np.where(np.isnan(x[:, head]), -np.inf, x[:, head])
        expected = np.searchsorted(flat[head], kept, side="left")
        np.testing.assert_array_equal(codes[:, head, :, : x.shape[-1]], expected)


def test_quantize_golden(backend: ModuleType) -> None:
    x = np.array([-11, -10, -9, 0, 1, 10, 10.5, np.nan], np.float32)
    # codes 0 0 1 1 2 2 3 0, coordinate 0 at bit 0
    expected = [0b01110000, 0b01001100]
    np.testing.assert_array_equal(backend.quantize(x, PAPER), np.array(expected, np.uint64))


@given(x=vectors(FINITE), bits=st.sampled_from([3, 4]))
def test_query_weights_are_rounded_shares(backend: ModuleType, x: NDArray[Any], bits: int) -> None:
    y = reference.hadamard(x)
    planes = backend.quantize_query(y, bits)
    P = planes.shape[-1] // bits
    sign = unpack_bits(planes[..., :P])[..., : y.shape[-1]]
    w = coordinates(planes[..., P:], bits - 1)[..., : y.shape[-1]]
    np.testing.assert_array_equal(sign, y > 0)
    wmax = 2 ** (bits - 1) - 1
    largest = np.abs(y).max(axis=-1, keepdims=True, initial=0)
    share = np.divide(np.abs(y), largest, out=np.zeros_like(y), where=largest > 0)
    assert (np.abs(w - share * wmax) <= 0.5 + 1e-5).all()
    assert (w.max(axis=-1, initial=0) == np.where(largest[..., 0] > 0, wmax, 0)).all()


def test_quantize_query_golden(backend: ModuleType) -> None:
    x = np.array([14, -7, 1, -0.9, 0, np.nan, 3, -3], np.float32)
    # shares of 7: 7, 3.5 (to even: 4), 0.5 (to even: 0), 0.45, 0, NaN (0), 1.5 (2), 1.5 (2)
    expected = [0b01000101, 0b00000011, 0b11000001, 0b00000001]
    np.testing.assert_array_equal(backend.quantize_query(x, 4), np.array(expected, np.uint64))


@given(case=cases())
def test_planes_are_rows_in_tiles(case: Any) -> None:
    rows = reference.quantize(reference.hadamard(case.k), PAPER)
    planes = to_planes(rows)
    S, P = rows.shape[-2], rows.shape[-1] // 2
    assert planes.shape[3:] == (-(-S // TILE), 8, P, 8)
    np.testing.assert_array_equal(from_planes(planes)[:, :, :S], rows)
    for s in range(0, S, 13):  # the address that DESIGN.md's layout gives a token's word
        for p in range(P):
            flat = planes[0, 0, 0].reshape(-1)[((s // 8) * P + p) * 8 + s % 8]
            assert flat == rows[0, 0, s, p]


@pytest.mark.parametrize("n", [1, 2, 8, 64, 65, 128, 200])
def test_pack_bits(n: int) -> None:
    bits = np.random.default_rng(n).random((3, n)) < 0.5
    words = pack_bits(bits)
    assert words.shape == (3, -(-n // 64))
    assert all(
        bool((int(words[r, i // 64]) >> (i % 64)) & 1) == bits[r, i]
        for r in range(3)
        for i in range(n)
    )
    np.testing.assert_array_equal(unpack_bits(words)[:, :n], bits)
