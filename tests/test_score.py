"""score: the reference against plain formulas and scipy, and every backend to the bit."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from oracles import assert_same_bits, coordinates, query_planes
from scipy.spatial.distance import cdist
from strategies import cases, metrics

from adamas_core import Selection, reference
from adamas_core.reference.quantize import from_planes, to_planes


@given(case=cases(), form=metrics)
def test_bits(kernels: ModuleType, case: Any, form: Selection) -> None:
    query = query_planes(case, form)
    args = (query, case.codes.planes, case.length, form.metric)
    assert_same_bits(kernels.score(*args), reference.score(*args))


@given(case=cases(), form=metrics)
def test_words_random(kernels: ModuleType, case: Any, form: Selection) -> None:
    """Every bit pattern, also those that quantize never gives."""
    rng = np.random.default_rng(case.q.size)
    query = rng.integers(0, 2**64, query_planes(case, form).shape, np.uint64)
    planes = rng.integers(0, 2**64, case.codes.planes.shape, np.uint64)
    args = (query, planes, case.length, form.metric)
    assert_same_bits(kernels.score(*args), reference.score(*args))


@given(case=cases())
def test_manhattan_is_cityblock(backend: ModuleType, case: Any) -> None:
    query = query_planes(case, Selection("manhattan"))
    got = backend.score(query, case.codes.planes, case.length, "manhattan")
    keys = coordinates(from_planes(case.codes.planes), 2)
    codes = coordinates(query, 2)
    B, H, L, _ = got.shape
    for b, h, l in np.ndindex(B, H, L):
        n = max(int(np.broadcast_to(case.length, (B,))[b]) - L + 1 + l, 0)
        k = keys[b, h // (H // keys.shape[1]), :n]
        expected = cdist(codes[b, h, l][None], k, "cityblock")[0] if n else []
        np.testing.assert_array_equal(got[b, h, l, :n], expected)
        assert (got[b, h, l, n:] == 65535).all()


@given(case=cases(), bits=st.sampled_from([3, 4]))
def test_weighted_ranks_as_the_inner_product(backend: ModuleType, case: Any, bits: int) -> None:
    """distance = const - sum of signed w times (code - 1.5), so the orders are the same."""
    query = query_planes(case, Selection(query_bits=bits))
    got = backend.score(query, case.codes.planes, case.length).astype(np.int64)
    P = query.shape[-1] // bits
    sign = 2 * coordinates(query[..., :P], 1) - 1
    signed = sign * coordinates(query[..., P:], bits - 1)
    keys = 2 * coordinates(from_planes(case.codes.planes), 2)[:, :, : got.shape[-1]] - 3
    keys = np.repeat(keys, got.shape[1] // keys.shape[1], axis=1)
    twice = np.einsum("bhld,bhsd->bhls", signed, keys)
    const = 3 * np.abs(signed).sum(axis=-1, keepdims=True)
    visible = got != 65535
    np.testing.assert_array_equal((2 * got)[visible], (const - twice)[visible])


def test_golden(every: ModuleType) -> None:
    codes = np.array([[0, 1, 2, 3], [3, 3, 0, 0]])  # two tokens, Dt = 4
    t = np.array([0.5, 1.5, 2.5], np.float32)
    rows = reference.quantize(codes.astype(np.float32), t)
    planes = to_planes(rows[None, None])
    e = reference.quantize(np.array([[[[1, 1, 1, 1]]]], np.float32), t)
    got = every.score(e, planes, 2, "manhattan")
    np.testing.assert_array_equal(got, np.array([[[[4, 6]]]], np.uint16))
    q = reference.quantize_query(np.array([[[[7, -3, 0, 1]]]], np.float32))  # e 3 0 0 3, w 7 3 0 1
    got = every.score(q, planes, 2, "weighted")
    np.testing.assert_array_equal(got, np.array([[[[24, 12]]]], np.uint16))
