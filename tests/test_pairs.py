"""Words as pairs of 32 bits, and back, without a copy."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from oracles import assert_same_bits

from adamas_core import Codes, KeyCodes, as_pairs, as_words, encode, quantize, select_topk
from adamas_core.dispatch import on_host

Place = Callable[[NDArray[Any]], Any]


@given(
    shape=st.lists(st.integers(0, 4), min_size=1, max_size=5),
    seed=st.integers(0, 2**32),
    step=st.integers(1, 2),
)
def test_halves_of_words(shape: list[int], seed: int, step: int) -> None:
    x = np.random.default_rng(seed).integers(0, 2**64, shape, np.uint64)
    x = x[::step] if len(shape) > 1 else x
    pairs = as_pairs(x)
    assert (pairs.dtype, pairs.shape) == (np.uint32, (*x.shape, 2))
    assert_same_bits(pairs[..., 0].astype(np.uint64), x & np.uint64(2**32 - 1))
    assert_same_bits(pairs[..., 1].astype(np.uint64), x >> np.uint64(32))
    words = as_words(pairs)
    assert_same_bits(words, x)
    if x.size:
        assert np.shares_memory(pairs, x)
        assert np.shares_memory(words, x)


def test_a_coordinate_is_a_bit_of_a_pair() -> None:
    for i in range(128):
        x = np.full(128, -1, np.float32)
        x[i] = 1
        high = as_pairs(quantize(x, [-2, 0, 2])[:2])
        assert high.reshape(-1)[i // 32] == 2 ** (i % 32)
        assert np.count_nonzero(high) == 1


@pytest.mark.parametrize("centered", [False, True])
def test_codes_of_pairs(place: Place, centered: bool) -> None:
    k = np.random.default_rng(0).standard_normal((2, 3, 300, 80)).astype(np.float32)
    codes = encode(place(k), centered=centered, bits=3 if centered else 2)
    record = codes.arrays()
    fine = record.fine and record.fine._replace(bits=as_pairs(record.fine.bits))
    pairs = record._replace(planes=as_pairs(record.planes), fine=fine)
    assert pairs.planes.dtype == np.uint32
    wrapped = KeyCodes.from_arrays(pairs, 80)
    assert_same_bits(on_host(wrapped.planes), on_host(codes.planes))
    assert wrapped.bits == codes.bits
    q = place(k[:, :, :1])
    assert_same_bits(on_host(select_topk(q, pairs, 9)), on_host(select_topk(q, codes, 9)))


@pytest.mark.peers
def test_jax_without_64_bits() -> None:
    if "CI" not in os.environ:
        pytest.importorskip("jax", reason='jax is in the extra "peers"')
    import jax

    k = np.random.default_rng(0).standard_normal((2, 300, 64)).astype(np.float32)
    codes = encode(k)
    planes = jax.numpy.asarray(as_pairs(codes.planes))
    assert planes.dtype == np.uint32
    got = select_topk(k[:, :1], codes.record._replace(planes=planes), 9)
    assert_same_bits(got, select_topk(k[:, :1], codes, 9))
    assert_same_bits(as_words(planes), codes.planes)


@pytest.mark.parametrize(
    ("call", "kind", "told"),
    [
        (lambda: as_pairs(np.ones(3, np.int64)), TypeError, "words is int64 .*expected dtype uint"),
        (lambda: as_pairs(np.uint64(3)), TypeError, "words is a numpy.uint64"),
        (lambda: as_pairs(np.array(3, np.uint64)), ValueError, "expected at least one axis"),
        (lambda: as_pairs(np.ones(8, np.uint64)[::2]), ValueError, "expected the last axis cont"),
        (lambda: as_words(np.ones((3, 2), np.uint64)), TypeError, "pairs is uint64 .*dtype uint32"),
        (lambda: as_words(np.ones(2, np.uint32)), ValueError, r"expected \(..., n, 2\)"),
        (lambda: as_words(np.ones((4, 3), np.uint32)), ValueError, r"expected \(..., n, 2\)"),
        (lambda: as_words(np.ones((4, 4), np.uint32)[:, :2]), ValueError, "last 2 axes contiguous"),
        (lambda: as_words(_odd()), ValueError, "not a multiple of its itemsize 8"),
    ],
)
def test_errors(call: Callable[[], Any], kind: type[Exception], told: str) -> None:
    with pytest.raises(kind, match=told):
        call()


def _odd() -> NDArray[np.uint32]:
    """Pairs at an address that is no multiple of 8."""
    x = np.zeros(8, np.uint32)
    first = 1 if x.ctypes.data % 8 == 0 else 2
    return x[first : first + 4].reshape(2, 2)


def test_a_record_of_wrong_pairs_is_refused() -> None:
    record = encode(np.ones((1, 10, 64), np.float32)).record
    with pytest.raises(ValueError, match=r"KeyCodes: planes is uint32 .*expected \(..., n, 2\)"):
        KeyCodes.from_arrays(record._replace(planes=record.planes.view(np.uint32)), 64)
    assert isinstance(record, Codes)
