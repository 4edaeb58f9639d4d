"""ValueCodes: codes and sums follow the values, however these arrive."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from oracles import assert_same_bits

from adamas_core import ValueCodes, encode, encode_values
from adamas_core.dispatch import on_host
from adamas_core.reference.tail import total_of

Place = Callable[[NDArray[Any]], Any]


def normal(*shape: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32) + np.float32(1)


def same(got: ValueCodes, expected: ValueCodes) -> None:
    """All that can be seen has the same bits."""
    assert got.shape == expected.shape
    assert got.nbytes == expected.nbytes
    assert got.centers is not None
    assert expected.centers is not None
    a, b = ((x.planes, *(x.centers or ()), x.total) for x in (got, expected))
    for x, y in zip(a, b, strict=True):
        assert_same_bits(on_host(x), on_host(y))


def test_the_codes_of_values_are_the_centered_codes_of_keys(place: Place) -> None:
    v = normal(2, 3, 150, 48)
    values, keys = encode_values(place(v)), encode(place(v))
    assert keys.centers is not None
    assert values.centers is not None
    assert_same_bits(on_host(values.planes), on_host(keys.planes))
    for x, y in zip(values.centers, keys.centers, strict=True):
        assert_same_bits(on_host(x), on_host(y))
    assert_same_bits(on_host(values.total), total_of(v, 150))
    assert (values.device, values.backend) == (keys.device, keys.backend)
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
