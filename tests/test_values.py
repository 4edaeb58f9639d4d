"""ValueCodes: codes and sums follow the values, however these arrive."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from oracles import assert_same_bits
from strategies import DTYPES, VALUES, head_dims, laid_out, layouts, seeds, values

from adamas_core import ValueCodes, encode_values, reference
from adamas_core.dispatch import on_host
from adamas_core.reference.layout import tiles, words
from adamas_core.reference.values import bases_of, read_values, total_of

Place = Callable[[NDArray[Any]], Any]


def normal(*shape: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32) + np.float32(1)


def same(got: ValueCodes, expected: ValueCodes) -> None:
    """All that can be seen has the same bits."""
    assert got.shape == expected.shape
    assert got.nbytes == expected.nbytes
    for x, y in zip(got.record, expected.record, strict=True):
        assert_same_bits(on_host(x), on_host(y))


appends = st.lists(st.integers(0, 150), min_size=1, max_size=4)


@settings(max_examples=100)
@given(
    counts=appends,
    kind=st.sampled_from(VALUES),
    dtype=st.sampled_from(DTYPES),
    D=head_dims,
    layout=layouts,
    ragged=st.booleans(),
    seed=seeds,
)
def test_bits(
    kernels: ModuleType,
    counts: list[int],
    kind: str,
    dtype: np.dtype[Any],
    D: int,
    layout: str,
    ragged: bool,
    seed: int,
) -> None:
    """Codes and scales, in one call or several, and nothing else is written."""
    B, H_kv, S = 2, 2, sum(counts)
    v = laid_out(values(kind, (B, H_kv, S, D), dtype, seed), layout)
    shape = B, H_kv, tiles(S + 70), 64
    mine, expected = (
        (np.full((*shape, 2, words(D)), 7, np.uint64), np.full(shape, 7, np.uint8))
        for _ in range(2)
    )
    start = 0
    for n in counts:
        count = np.array([n, n // 2]) if ragged else n
        first = np.array([start, start // 2]) if ragged else start
        bases = bases_of(v, first + count)
        new = v[:, :, start : start + n]
        kernels.encode_values(new, *mine, bases, first, count)
        reference.encode_values(new, *expected, bases, first, count)
        start += n
    for got, wanted in zip(mine, expected, strict=True):
        assert_same_bits(got, wanted)


@pytest.mark.parametrize("offset", [0, 1e4])
@pytest.mark.parametrize("size", [1e-3, 1, 1e3])
@pytest.mark.parametrize("D", [48, 128])
def test_values_are_read_back(offset: float, size: float, D: int) -> None:
    """The relative error is that of two bits, whatever the size of values and their mean."""
    v = normal(2, 2, 300, D) * np.float32(size) + np.float32(offset * size)
    read = read_values(encode_values(v, backend="reference").record, 300)
    own = v - v.mean(axis=2, keepdims=True)
    error = np.square(read - v).sum(axis=3) / np.square(own).sum(axis=3)
    assert error[:, :, 64:].mean() < 0.15
    assert error[:, :, 1:64].mean() < 0.3  # relative to the first value, so with twice the variance
    np.testing.assert_allclose(read[:, :, 0], v[:, :, 0], rtol=1e-6, atol=1e-4)


def test_bases_are_0_where_they_are_not_finite(place: Place) -> None:
    v = normal(1, 1, 70, 4)
    v[0, 0, 0, 1], v[0, 0, 5, 2] = np.inf, np.nan
    bases = on_host(encode_values(place(v)).bases)
    assert (bases[0, 0] == 0).tolist() == [[False, True, False, False], [False, True, True, False]]
    assert_same_bits(bases, bases_of(v, 70))


def test_the_record(place: Place) -> None:
    v = normal(2, 3, 150, 48)
    values = encode_values(place(v))
    expected = encode_values(v, backend="reference")
    for x, y in zip(values.record, expected.record, strict=True):
        assert_same_bits(on_host(x), np.ascontiguousarray(y))
    assert_same_bits(on_host(values.total), total_of(v, 150))
    assert values.codes.shape == (2, 3, 3, 64, 2, 1)
    assert values.scales.shape == (2, 3, 3, 64)
    assert "ValueCodes(shape=(2, 3, 150, 48), length=150" in repr(values)


def test_however_they_come(place: Place) -> None:
    v = normal(2, 300, 48)
    values = ValueCodes(1, 2, 48, backend=encode_values(place(v)).backend)
    done = 0
    for n in (1, 62, 1, 100, 64, 72):
        values.append(place(v[:, done : done + n]))
        done += n
    same(values, encode_values(place(v)))


@pytest.mark.parametrize("tokens", [300, 280, 256, 255, 64, 1, 0])
def test_truncate_then_append(place: Place, tokens: int) -> None:
    v, other = normal(1, 2, 300, 64), normal(1, 2, 90, 64, seed=1)
    values = encode_values(place(v))
    values.truncate(tokens, place(v))
    values.append(place(other))
    whole = np.concatenate([v[:, :, :tokens], other], axis=2)
    same(values, encode_values(place(whole)))


def test_lengths_of_their_own() -> None:
    v = normal(3, 2, 200, 32)
    values = encode_values(v, length=np.array([200, 0, 65]))
    values.append(v[:, :, :70], count=np.array([1, 70, 0]))
    values.truncate([190, 66, 65], v)
    mixed = v.copy()
    mixed[1, :, :70] = v[1, :, :70]
    same(values, encode_values(mixed, length=np.array([190, 66, 65])))
    np.testing.assert_array_equal(values.length, [190, 66, 65])


def test_room_is_no_token() -> None:
    v = normal(1, 2, 70, 16)
    values = ValueCodes(1, 2, 16, capacity=1000)
    assert values.tokens == 0
    assert not values.total.any()
    values.append(v)
    same(values, encode_values(v))


@pytest.mark.peers
def test_arrays_of_torch() -> None:
    torch = pytest.importorskip("torch")
    v = normal(1, 2, 70, 16)
    half = torch.from_numpy(v).to(torch.bfloat16)
    same(encode_values(torch.from_numpy(v)), encode_values(v))
    values = encode_values(half)
    values.truncate(30, half)
    values.append(half[:, :, 30:])
    same(values, encode_values(half))
