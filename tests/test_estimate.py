"""estimate and rank: against float64, and the order of their bits."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from strategies import UNIT, cases

from adamas_core import reference
from adamas_core.reference.center import scale_of
from adamas_core.reference.estimate import estimate, rank
from adamas_core.reference.layout import INVISIBLE
from adamas_core.reference.quantize import from_planes, unpack_bits


@given(case=st.booleans().flatmap(lambda c: cases(UNIT, centered=c)), bits=st.integers(2, 6))
def test_estimates_are_products_with_what_is_read_back(case: Any, bits: int) -> None:
    """In float64, from codes and weights that are unpacked one by one."""
    codes, S = case.codes, case.tokens
    x = reference.hadamard(case.q)
    query = reference.quantize_query(x, bits)
    d = reference.score(query, codes.planes, S)
    got = estimate(x, query, d, codes)
    Dt, P, G = x.shape[-1], codes.planes.shape[5], case.q.shape[1] // case.k.shape[1]
    high, low = np.split(unpack_bits(from_planes(codes.planes))[:, :, :S], 2, axis=-1)
    u = (2.0 * high + low - 1.5)[..., :Dt]  # (B, H_kv, S, Dt)
    if codes.centers is None:
        t = codes.thresholds.astype(np.float64)
        y = u * ((t[:, 2] - t[:, 0]) / 2)[:, None, None]
        q = np.zeros_like(x, np.float64)
    else:
        means, scales, _ = codes.centers
        s = scale_of(scales).reshape(*scales.shape[:2], -1)[:, :, :S, None]
        y = u * s.astype(np.float64)
        mean = np.repeat(means.astype(np.float64), 64, axis=2)[:, :, :S]
        q = np.einsum("bhld,bhsd->bhls", x.astype(np.float64), np.repeat(mean, G, axis=1))
    planes = unpack_bits(query).reshape(*x.shape[:3], bits, 64 * P)[..., :Dt].astype(np.int64)
    weight = sum(planes[..., i, :] << (bits - 1 - i) for i in range(1, bits))
    top = abs(x).max(axis=-1, keepdims=True).astype(np.float64)
    read = np.where(planes[..., 0, :] == 1, 1, -1) * weight * top / (2 ** (bits - 1) - 1)
    expected = np.einsum("bhld,bhsd->bhls", read, np.repeat(y, G, axis=1))
    if codes.centers is not None:
        expected += q
    seen = d != INVISIBLE
    size = abs(read).sum(axis=-1)[..., None] * (abs(y).max(initial=0) + 1e-30) + (
        abs(x).sum(axis=-1)[..., None] * abs(case.k.astype(np.float64)).max(initial=0) * Dt
    )
    assert (abs(got - expected) <= 2e-6 * size + 1e-30)[seen].all()


def test_ranks_rise_as_estimates_fall() -> None:
    top = np.finfo(np.float32).max
    falling = np.array([np.inf, top, 1, 1e-45, 0, -1e-45, -1, -top, -np.inf], np.float32)
    ranks = rank(falling, np.zeros(9, np.uint16)).astype(np.int64)
    assert (np.diff(ranks) > 0).all()
    assert ranks[-1] < 2**32 - 1
    odd = np.array([np.nan, -0.0, 5], np.float32)
    got = rank(odd, np.array([0, 0, INVISIBLE], np.uint16)).tolist()
    assert got == [ranks[-1], ranks[4], 2**32 - 1]
